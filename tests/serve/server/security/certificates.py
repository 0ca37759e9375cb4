"""Certificates of an authority of one's own."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme

LONG_AGO = {"not_before": datetime(2020, 1, 1, tzinfo=UTC), "not_after": datetime(2021, 1, 1, tzinfo=UTC)}


@dataclass(frozen=True)
class Pem:
    certificate: Path
    key: Path


class Authority:
    """Its certificate is `ca`; all files lie in `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._authority = folder, trustme.CA()
        self.ca = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *also: str, **options: Any) -> Pem:
        """NAME.pem and NAME.key for this machine; files of that name are replaced. also: more names that it proves"""
        issued = self._authority.issue_cert("localhost", "127.0.0.1", *also, **options)
        pem = Pem(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        for path, blobs in ((pem.certificate, issued.cert_chain_pems), (pem.key, [issued.private_key_pem])):
            path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return pem
