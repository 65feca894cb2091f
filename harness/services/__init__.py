"""Servers that guests reach: an update server and a container registry, with faults on demand.

::

    with UpdateServer(runner, ca, unknown, folder) as updates:
        updates.publish(path)
        machine = launch(spec, Setup(services={updates.name: updates.address}, ...))
        with updates.fault("/*", CutOff(percent=50)):
            ...
        assert [request.path for request in updates.requests] == ["/SHA256SUMS"]
"""

from harness.services.ca import GUEST_ADDRESS, Ca, Certificate
from harness.services.faults import (
    ActiveFault,
    CutOff,
    ExpiredCertificate,
    FlippedBit,
    ServerError,
    Slow,
    UnknownCa,
    WrongLength,
)
from harness.services.request_log import Request
from harness.services.server import SERVICE_MODES, Registry, Server, ServiceRunner, UpdateServer

__all__ = [
    "GUEST_ADDRESS",
    "SERVICE_MODES",
    "ActiveFault",
    "Ca",
    "Certificate",
    "CutOff",
    "ExpiredCertificate",
    "FlippedBit",
    "Registry",
    "Request",
    "Server",
    "ServerError",
    "ServiceRunner",
    "Slow",
    "UnknownCa",
    "UpdateServer",
    "WrongLength",
]
