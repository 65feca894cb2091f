"""The report for a keyboard, a screen reader and poor eyes: axe-core finds nothing serious."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from harness.evidence.report import page
from tests.gate.tools import AXE, AXE_SHA512, npm_package
from tests.integration.test_report_browser import BROWSER, TEST, Browser, a_run, browser

__all__ = ["browser"]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt install chromium")

SERIOUS = """
axe.run(document, {resultTypes: ["violations"]}).then(found => JSON.stringify(found.violations
  .filter(each => ["serious", "critical"].includes(each.impact))
  .map(each => [each.id, each.help, each.nodes.map(node => node.html.slice(0, 200))])))
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("address", ["", f"#test={quote(TEST)}"], ids=["run", "test"])
def test_axe_finds_nothing_serious(
    tmp_path: Path, browser: Browser, address: str, width: int, scheme: str
) -> None:
    code = (npm_package(AXE, AXE_SHA512) / "axe.min.js").read_text()
    page.write(a_run(tmp_path, "run"), tmp_path / "report.html")
    browser(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser("Emulation.setEmulatedMedia", features=features)
    browser.show(tmp_path / "report.html", address)
    if address:
        browser.until("document.querySelector('.ap-term')")
        browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.evaluate(f"{code}; 0")
    assert json.loads(browser.evaluate(SERIOUS)) == []
