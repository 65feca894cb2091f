"""What guests talk to: an update server and a container registry, with faults on demand.

::

    with UpdateServer(host, ca, unknown, folder) as updates:
        updates.publish(path)
        machine = Machine(spec, services={updates.name: updates.address}, ...)
        with updates.fault("/*", CutOff(percent=50)):
            ...
        assert [each.path for each in updates.requests] == ["/SHA256SUMS"]
"""

from harness.services.ca import GUEST_ADDRESS, Ca, Certificate
from harness.services.faults import (
    Active,
    CutOff,
    ExpiredCertificate,
    FlippedBit,
    ServerError,
    Slow,
    UnknownCa,
    WrongLength,
)
from harness.services.log import Request
from harness.services.server import WAYS, Host, Registry, Server, UpdateServer

__all__ = [
    "GUEST_ADDRESS",
    "WAYS",
    "Active",
    "Ca",
    "Certificate",
    "CutOff",
    "ExpiredCertificate",
    "FlippedBit",
    "Host",
    "Registry",
    "Request",
    "Server",
    "ServerError",
    "Slow",
    "UnknownCa",
    "UpdateServer",
    "WrongLength",
]
