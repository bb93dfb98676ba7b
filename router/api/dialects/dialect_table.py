"""The dialects that clients can speak. A new one is a module of this folder and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.api.dialects.dialect import Dialect
from router.api.dialects.native import NativeDialect
from router.api.dialects.openai import OpenAIDialect
from router.call import Dialect as DialectName

DIALECTS: Final[Mapping[DialectName, Dialect]] = {
    "native": NativeDialect(),
    "openai": OpenAIDialect(),
}
