"""``routerctl prices`` and the warnings of ``config validate``, as an operator meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from router.cli.main import cli
from router.cli.prices import catalogue
from router.config.document import Prices
from router.config.loader import load_file

pytest.importorskip(
    "genai_prices", reason="THE PRICE CATALOGUE IS NOT INSTALLED (it needs Python 3.11)"
)

ROOT = Path(__file__).parents[4]
USD = 10**9
OWN = "local is one's own, and free"
ON = ("--on", "2026-11-30")
DOCUMENT = """\
version: 1
organizations: [{id: acme}]
models:
  - id: gpt-4o  # the old one
    prices:
      input_usd_per_million_tokens: "3.00"
      output_usd_per_million_tokens: "10.00"
  - id: sonnet
    aliases: [claude-sonnet-4-5]
    max_output_tokens: 4096
  - id: llama
    prices: {input_usd_per_million_tokens: "0", output_usd_per_million_tokens: "0"}
  - id: unused
backends:
  - id: openai
    kind: openai
    base_url: https://api.openai.com/v1
    models: {gpt-4o: gpt-4o-2024-08-06}
  - {id: azure, kind: openai, base_url: "https://me.openai.azure.com/openai/v1"}
  - {id: proxy, kind: anthropic, base_url: "https://llm.example.com"}
  - id: groq
    kind: openai
    base_url: https://api.groq.com/openai/v1
    models: {llama: llama-3.1-8b-instant}
  - {id: local, kind: openai, base_url: "http://10.0.0.7:8000/v1"}
policies:
  - {organization: "*", model: gpt-4o, backends: [{id: openai}, {id: azure}]}
  - {organization: acme, model: sonnet, backends: [{id: proxy}]}
  - {organization: "*", model: llama, backends: [{id: groq}, {id: local}]}
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    file = tmp_path / "router.yaml"
    file.write_text(DOCUMENT, encoding="utf-8")
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], prog_name="routerctl")


def rows(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_import_fills_prices_and_says_what_it_changed(document: Path) -> None:
    """By the address, or the kind, of each backend; what is nobody's is named and stays."""
    document.chmod(0o640)
    result = run("prices", "import", document, *ON, "-o", "json")
    assert result.exit_code == 0
    assert "catalogue: genai-prices" in result.stderr
    assert "newest prices are of 2026-11-09" in result.stderr
    changes = rows(result)
    assert {
        "change": "changed", "model": "gpt-4o", "backend": None,
        "field": "input_usd_per_million_tokens", "old": "3.00", "new": "2.50",
        "source": "openai/gpt-4o, address of openai",
    } in changes  # fmt: skip
    sources = {(row["change"], row["model"], row["backend"], row["source"]) for row in changes}
    assert sources == {
        ("changed", "gpt-4o", None, "openai/gpt-4o, address of openai"),
        ("added", "gpt-4o", "azure", "azure/gpt-4o, address of azure"),
        ("added", "sonnet", None, "anthropic/claude-sonnet-4-5, kind of proxy"),
        ("added", "llama", "groq", "groq/llama-3.1-8b-instant, address of groq"),
        ("skipped", "llama", "local", OWN),
        ("skipped", "unused", None, "no backend serves it"),
    }  # fmt: skip
    built = load_file(document, demo=False, pepper=b"").build(1)
    gpt_4o = built.prices_of("gpt-4o", "openai")
    assert gpt_4o is not None
    assert (gpt_4o.input_nanos, gpt_4o.cached_input_nanos) == (2_500_000_000, 1_250_000_000)
    assert gpt_4o.service_tiers["priority"].multiplier_ppm == 1_700_000
    sonnet = built.prices_of("sonnet", "proxy")
    assert sonnet is not None
    assert sonnet.classes["cache_write_1h"] == 6 * USD
    assert [tier.above_input_tokens for tier in sonnet.tiers] == [200_000]
    # The server of one's own stays free, whatever the same model costs elsewhere.
    assert built.prices_of("llama", "local") == Prices(0, 0)
    assert built.prices_of("llama", "groq") == Prices(
        USD * 5 // 100, USD * 8 // 100, as_of="2026-11-09"
    )
    text = document.read_text("utf-8")
    assert "  - id: gpt-4o  # the old one\n" in text
    assert document.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in document.parent.iterdir()] == ["router.yaml"]


def test_what_was_imported_differs_no_longer(document: Path) -> None:
    """diff says 1 before and 0 after, a second import changes nothing, nothing warns."""
    before = run("prices", "diff", document, *ON, "-o", "json")
    assert before.exit_code == 1
    imported = run("prices", "import", document, *ON, "-o", "json")
    assert rows(imported) == rows(before)
    text = document.read_text("utf-8")
    after = run("prices", "diff", document, *ON, "-o", "json")
    assert after.exit_code == 0
    assert {row["change"] for row in rows(after)} == {"skipped"}
    assert run("prices", "import", document, *ON).exit_code == 0
    assert document.read_text("utf-8") == text
    validated = run("config", "validate", document)
    assert (validated.exit_code, validated.stderr) == (0, "")


def test_diff_changes_nothing(document: Path) -> None:
    """A row for each field that differs; CSV has the same columns."""
    result = run("prices", "diff", document, *ON, "--model", "claude-sonnet-4-5", "-o", "csv")
    assert result.exit_code == 1
    header, first, *_ = result.stdout.splitlines()
    assert header == "change,model,backend,field,old,new,source"
    assert first == (
        "added,sonnet,,input_usd_per_million_tokens,,3.00,"
        '"anthropic/claude-sonnet-4-5, kind of proxy"'
    )
    assert document.read_text("utf-8") == DOCUMENT


def test_a_chosen_price_list_counts_for_every_backend(document: Path) -> None:
    """With --provider nothing is looked up by address or kind."""
    result = run("prices", "import", document, *ON, "--provider", "groq", "--model", "llama")
    assert result.exit_code == 0
    built = load_file(document, demo=False, pepper=b"").build(1)
    assert built.prices_of("llama", "local") == built.prices_of("llama", "groq")
    assert built.prices_of("gpt-4o", "openai") == Prices(3 * USD, 10 * USD)


def test_backends_that_cost_the_same_need_no_prices_of_their_own(tmp_path: Path) -> None:
    """Prices at a backend are written only where they differ."""
    file = tmp_path / "two.json"
    openai = {"kind": "openai", "base_url": "https://api.openai.com/v1"}
    plain = {
        "version": 1,
        "models": [{"id": "o3"}],
        "backends": [{"id": "a", **openai}, {"id": "b", **openai}],
        "policies": [{"organization": "*", "model": "*", "backends": [{"id": "a"}, {"id": "b"}]}],
    }
    file.write_text(json.dumps(plain), encoding="utf-8")
    assert run("prices", "import", file, *ON).exit_code == 0
    written = json.loads(file.read_text("utf-8"))
    assert "prices" in written["models"][0]
    assert written["backends"] == plain["backends"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--provider", "nobody"), "'nobody' is none of anthropic, "),
        (("--model", "gpt-5"), "the document has no model gpt-5"),
        (("--on", "tomorrow"), "'tomorrow' is no day such as 2026-11-09"),
    ],
)
def test_wrong_usage(document: Path, arguments: tuple[str, str], message: str) -> None:
    """Exit code 2, and the file is as it was."""
    result = run("prices", "import", document, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert document.read_text("utf-8") == DOCUMENT


def test_a_document_with_a_mistake_is_not_touched(document: Path) -> None:
    """Its mistakes are said as 'config validate' says them."""
    document.write_text(DOCUMENT + "more: 1\n", encoding="utf-8")
    result = run("prices", "import", document)
    assert result.exit_code == 1
    assert "more: unknown field" in result.stderr


def test_show() -> None:
    """The fields of a document, at one provider or at all that have the model."""
    result = run(
        "prices", "show", "claude-sonnet-4-5", "--provider", "anthropic", *ON, "-o", "json"
    )
    assert result.exit_code == 0
    facts = {"provider": "anthropic", "model": "claude-sonnet-4-5"}
    for field, price in (
        ("cache_write_1h_usd_per_million_tokens", "6.00"),
        ("tiers[200000].output_usd_per_million_tokens", "22.50"),
        ("service_tiers.batch.multiplier", "0.5"),
    ):
        assert {**facts, "field": field, "price": price} in rows(result)
    everywhere = rows(run("prices", "show", "gpt-4o", *ON, "-o", "json"))
    assert {"openai", "azure"} <= {row["provider"] for row in everywhere}
    nothing = run("prices", "show", "no-such-model")
    assert nothing.stdout == "the catalogue has no no-such-model\n"


@pytest.mark.parametrize("command", ["import", "diff", "show"])
def test_without_the_package(monkeypatch: pytest.MonkeyPatch, document: Path, command: str) -> None:
    """One line says how to install it; the exit code is that of what could not be found out."""
    monkeypatch.setattr(catalogue, "is_installed", lambda: False)
    result = run("prices", command, document)
    assert result.exit_code == 3
    assert "install api-router[prices]" in result.stderr
    assert document.read_text("utf-8") == DOCUMENT


WARNED = """\
version: 1
models:
  - id: gpt-4o
    prices: {input_usd_per_million_tokens: "2.50", output_usd_per_million_tokens: "10"}
  - id: claude-sonnet-4-5
    prices:
      input_usd_per_million_tokens: "3"
      output_usd_per_million_tokens: "15"
      cached_input_usd_per_million_tokens: "0.30"
      as_of: 2025-01-01
  - id: mine
    prices: {input_usd_per_million_tokens: "1", output_usd_per_million_tokens: "1"}
  - id: free
    prices: {input_usd_per_million_tokens: "0", output_usd_per_million_tokens: "0"}
  - id: unpriced
backends:
  - {id: openai, kind: openai, base_url: "https://api.openai.com/v1"}
  - {id: anthropic, kind: anthropic, base_url: "https://api.anthropic.com"}
  - {id: local, kind: openai, base_url: "http://127.0.0.1:1/v1"}
policies:
  - {organization: "*", model: gpt-4o, backends: [{id: openai}]}
  - {organization: "*", model: claude-sonnet-4-5, backends: [{id: anthropic}]}
  - {organization: "*", model: "*", backends: [{id: local}]}
"""


def warnings(result: Result) -> list[str]:
    assert result.exit_code == 0
    return [line.removeprefix("warning: ") for line in result.stderr.splitlines()]


def test_validate_warns_of_classes_without_a_price(tmp_path: Path) -> None:
    """What the catalogue prices for a model; else what others of its kind can report. Prices that
    are older than the catalogue, and differ, are named with their day."""
    file = tmp_path / "router.yaml"
    file.write_text(WARNED, encoding="utf-8")
    assert warnings(run("config", "validate", file)) == [
        "no price for cache_read, web_searches: gpt-4o at openai",
        "no price for cache_write_1h, cache_write_5m, web_searches: claude-sonnet-4-5 at anthropic",
        "no price for cache_read: mine at local",
        f"prices of 2025-01-01 differ from {catalogue.Catalogue()}:"
        " claude-sonnet-4-5 at anthropic; see 'routerctl prices diff'",
    ]


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", ["router/demo/demo.yaml", "deploy/router.example.yaml"])
def test_documents_to_start_from_warn_of_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, installed: bool
) -> None:
    """Their prices are whole."""
    if not installed:
        monkeypatch.setattr("router.cli.prices.price_warnings.is_installed", lambda: False)
    monkeypatch.setenv("ROUTER_DEMO", "true")
    assert warnings(run("config", "validate", ROOT / name)) == []


def test_validate_warns_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By what each kind of backend can report; nothing is known of the age."""
    monkeypatch.setattr("router.cli.prices.price_warnings.is_installed", lambda: False)
    file = tmp_path / "router.yaml"
    file.write_text(WARNED, encoding="utf-8")
    assert warnings(run("config", "validate", file)) == [
        "no price for cache_read: gpt-4o at openai, mine at local",
        "no price for cache_write_1h, cache_write_5m, web_searches: claude-sonnet-4-5 at anthropic",
    ]


def test_serving_never_imports_the_catalogue() -> None:
    """It would bring pydantic and a third of a second into every worker."""
    script = "import sys, router.app, router.cli.prices.prices_commands as _; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert {"genai_prices", "pydantic"}.isdisjoint(found.stdout.split())


@pytest.mark.parametrize(
    ("base_url", "prices", "source"),
    [
        ("http://127.0.0.1:4000/v1", None, "openai/gpt-4o, kind of b"),
        ("http://127.0.0.1:4000/v1", "1", "openai/gpt-4o, kind of b"),
        ("http://127.0.0.1:4000/v1", "0", "b is one's own, and free"),
        ("http://10.1.2.3/v1", "0", "b is one's own, and free"),
        ("http://[::1]:8000/v1", "0", "b is one's own, and free"),
        ("http://gpu-box:8000/v1", "0", "b is one's own, and free"),
        ("http://vllm.models.svc/v1", "0", "b is one's own, and free"),
        ("https://llm.example.com/v1", "0", "openai/gpt-4o, kind of b"),
        ("https://api.openai.com/v1", "0", "openai/gpt-4o, address of b"),
    ],
)
def test_what_is_free_on_a_server_of_ones_own_stays_free(
    tmp_path: Path, base_url: str, prices: str | None, source: str
) -> None:
    """A gateway in a private network is its kind's provider; a model that runs there is not."""
    model: dict[str, Any] = {"id": "gpt-4o"}
    if prices is not None:
        names = ("input_usd_per_million_tokens", "output_usd_per_million_tokens")
        model["prices"] = dict.fromkeys(names, prices)
    plain = {
        "version": 1,
        "models": [model],
        "backends": [{"id": "b", "kind": "openai", "base_url": base_url}],
        "policies": [{"organization": "*", "model": "*", "backends": [{"id": "b"}]}],
    }
    file = tmp_path / "router.json"
    file.write_text(json.dumps(plain), encoding="utf-8")
    found = rows(run("prices", "diff", file, *ON, "-o", "json"))
    assert {row["source"] for row in found} == {source}


def test_a_document_without_policies_yet(tmp_path: Path) -> None:
    """Every model is looked up at every backend; without backends a price list has to be chosen."""
    backend = {"id": "b", "kind": "openai", "base_url": "https://api.openai.com/v1"}
    plain: dict[str, Any] = {"version": 1, "models": [{"id": "o3"}], "backends": [backend]}
    file = tmp_path / "router.json"
    file.write_text(json.dumps(plain), encoding="utf-8")
    assert run("prices", "import", file, *ON).exit_code == 0
    [model] = load_file(file, demo=False, pepper=b"").models
    assert model.prices is not None
    file.write_text(json.dumps({**plain, "backends": []}), encoding="utf-8")
    assert "no backend serves it" in run("prices", "import", file, *ON).stdout
    chosen = run("prices", "import", file, *ON, "--provider", "openai", "-o", "json")
    assert {row["source"] for row in rows(chosen)} == {"openai/o3, chosen"}
    assert load_file(file, demo=False, pepper=b"").models == (model,)
