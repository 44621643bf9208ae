"""Prompts and the tokenizers that read them: what is too long is counted, never cut in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.stored_files import listed
from afterimage.standalone.own_call import Asks

_NO_LIMIT = 100_000
"""Tokenizers without a limit have a larger one."""


def check(pipeline: Any, prompts: Sequence[Any], asked: Asks, truncate: bool) -> list[str]:
    """Check that tokenizers can read prompts, and take them whole; return notes for the user.

    A prompt is too long if it is longer than every tokenizer takes. If one of several takes it
    whole (SD 3 and Flux have CLIP's, for 77 tokens, and T5's), that is a note.

    Args:
        pipeline: The opened pipeline.
        prompts: The prompts.
        asked: What its call asks for.
        truncate: ``--truncate-prompts``.

    Raises:
        ArtifactError: if a tokenizer knows nothing of a prompt.
        ConfigError: naming the flag, if prompts are too long and must not be cut.
    """
    for name, tokenizer in _tokenizers(pipeline).items():
        special = set(tokenizer.all_special_ids)
        unread = [
            prompt
            for prompt, ids in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True)
            if prompt and set(ids) <= special
        ]
        if unread:
            raise ArtifactError(
                f"--pipeline: its {name} knows nothing of {len(unread)} of {len(prompts)} prompts "
                f"({listed([repr(prompt[:40]) for prompt in unread])}): its vocabulary is of "
                f"{len(tokenizer)} tokens, {len(special)} of them special; is it that of the model?"
            )
    limits = _limits(pipeline, asked)
    if not limits:
        return []
    lengths = {
        name: [len(ids) for ids in tokenizer(list(prompts)).input_ids]
        for name, (tokenizer, _) in limits.items()
    }
    over = {
        name: {row for row, length in enumerate(lengths[name]) if length > limit}
        for name, (_, limit) in limits.items()
    }
    notes = [
        f"{len(rows)} of {len(prompts)} prompts are longer than the {limits[name][1]} tokens that "
        f"its {name} takes, and are cut for it"
        for name, rows in over.items()
        if rows
    ]
    cut = set.intersection(*over.values())
    if not cut or truncate:
        return notes
    widest = max(limits, key=lambda name: limits[name][1])
    examples = [f"{prompts[row][:40]!r}... has {lengths[widest][row]}" for row in sorted(cut)[:3]]
    raise ConfigError(
        f"--prompts: {len(cut)} of {len(prompts)} prompts are longer than the "
        f"{limits[widest][1]} tokens that the pipeline's {widest} takes: {listed(examples)}; "
        "shorten them, or --truncate-prompts cuts them, as trainers do"
    )


def _tokenizers(pipeline: Any) -> dict[str, Any]:
    """Return the tokenizers of a pipeline by name."""
    return {
        name: part
        for name, part in pipeline.components.items()
        if "tokenizer" in name and hasattr(part, "all_special_ids")
    }


def _limits(pipeline: Any, asked: Asks) -> dict[str, tuple[Any, int]]:
    """Return tokenizer -> itself and the number of tokens that it takes."""
    longest = asked.default("max_sequence_length")
    limits = {}
    for name, tokenizer in _tokenizers(pipeline).items():
        limit = tokenizer.model_max_length
        if isinstance(longest, int) and not type(tokenizer).__name__.startswith("CLIP"):
            limit = longest
        if limit < _NO_LIMIT:
            limits[name] = (tokenizer, limit)
    return limits
