"""How much a call may use, told from what it asks for."""

from __future__ import annotations

from router.call import Call


def bounded_output(call: Call) -> int | None:
    """Tokens of output that the client asks for at most; ``None`` where it sets no bound."""
    if call.operation == "embeddings":
        return 0
    bounds = [call.fields.get("max_tokens")]
    if call.operation == "chat":  # a backend may heed either
        bounds.append(call.fields.get("max_completion_tokens"))
    given = [int(bound) for bound in bounds if bound is not None]
    return max(given) * choices(call) if given else None


def max_output(call: Call, model_bound: int) -> int:
    """Tokens of output at most; ``model_bound`` is what the model generates in one answer."""
    asked = bounded_output(call)
    return model_bound * choices(call) if asked is None else asked


def choices(call: Call) -> int:
    """How many texts are generated."""
    prompts = call.fields.get("prompt")
    texts = 1
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        texts = len(prompts)
    best_of = call.fields.get("best_of")
    each = max(call.fields.get("n") or 1, best_of if isinstance(best_of, int) else 1)
    return int(each) * texts
