"""Who may ask: the keys, the names of this server, the pages of other sites."""

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class Access:
    """Who may ask."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """Name -> key; the name is what the log says. Empty: anybody who reaches the address."""
    hosts: tuple[str, ...] = LOOPBACK
    """Names of this server, lower case, without a port."""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may ask, as https://name."""

    def key_name(self, header: str) -> str | None:
        """Whose key an Authorization header has: Bearer, or Basic with it as the password (browsers); None: nobody's.

        Each key is compared, whatever the others gave, so that the time tells nothing.
        """
        scheme, _, value = header.strip().partition(" ")
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
            except (binascii.Error, ValueError):
                return None
        elif scheme.lower() != "bearer":
            return None
        given = value.strip().encode()
        same = [name for name, key in self.keys.items() if hmac.compare_digest(given, key.encode())]
        return same[0] if same else None
