"""The policy as it started: what it gave an answer, without a second model in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..core import ranks
from ..core.config import Settings
from ..core.errors import UserError
from ..core.pack import Pack
from ..core.sequence import Sequence
from ..model.checkpoint import flush, flush_folder, sha256, writing
from ..model.forward import Forward, Outputs
from ..model.halves import split
from ..model.policy import Policy, kept_wide
from .conditions import digest
from .pairs import answer_sums
from .update import lay_packs

FILE = "reference.safetensors"


class Reference:
    """Runs packs as the policy was at update 0: `reference(pack, needs) -> Outputs`, without gradient, in eval mode.

    Where the adapters are fresh, what they stand on is the policy as it started, so they are switched off. Where they
    continue an earlier adapter, a frozen copy of its weights takes their place for the time of the forward
    (test_reference.py::test_the_reference_is_the_policy_as_it_started).
    """

    def __init__(self, forward: Forward, frozen: dict[str, torch.Tensor] | None = None):
        self.forward, self.frozen = forward, frozen

    @torch.no_grad()
    def __call__(self, pack: Pack, needs: Iterable[str] = ("logprobs",), temperature: float = 1.0) -> Outputs:
        model = self.forward.model
        was_training = model.training
        model.eval()
        with self._copied() if self.frozen is not None else model.disable_adapter():
            out = self.forward(pack.to(self.forward.device), needs, temperature)
        model.train(was_training)
        return out

    def answers(self, pack: Pack) -> torch.Tensor:
        """Log-prob of each answer, nats: a pack -> [S] float64 on its own device."""
        return answer_sums(self(pack).logprobs_T, pack.to(self.forward.device)).to(pack.ids_T.device)

    @contextmanager
    def _copied(self):
        parameters = dict(self.forward.model.named_parameters())
        self._swap(parameters)
        try:
            yield
        finally:
            self._swap(parameters)

    def _swap(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        for name in self.frozen:
            self.frozen[name], parameters[name].data = parameters[name].data, self.frozen[name]


class Remembered:
    """The answers' log-probs of all rows of a run, computed once before its first update and kept in the run folder.

    For full fine-tuning: the weights as they started are gone after one update, and a copy would be a second model. A
    sequence is known by the hash of its ids and weights (test_reference.py::test_log_probs_are_computed_once).
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.known: dict[bytes, float] = {}

    def reuse(self, under: str) -> None:
        """Take what a start that ended before its first checkpoint left, if it was made under the same conditions."""
        with suppress(OSError, SafetensorError):  # none, or no whole one: all is computed anew
            with safe_open(self.path, "pt") as file:
                same = (file.metadata() or {}).get("under") == under
            if same:
                self._read()

    def recall(self, checksum: str | None) -> None:
        """Take what the run began with; a file that is not the one of this SHA-256 ends it."""
        wrong = "" if self.path.is_file() else "it is missing"
        if not wrong and checksum and sha256(self.path) != checksum:
            wrong = "its checksum differs"
        try:
            if not wrong:
                return self._read()
        except SafetensorError as e:
            wrong = str(e)
        raise UserError("the reference of this run is lost", where=str(self.path), found=wrong,
                        expected="the file that the run wrote before its first update",
                        fix="bring it back from a copy, or start a new run: the policy as it started is gone")

    def _read(self) -> None:
        read = load_file(self.path)
        self.known = {k.tobytes(): v for k, v in zip(read["keys"].numpy(), read["logprobs"].tolist(), strict=True)}

    @torch.no_grad()
    def learn(self, forward: Forward, updates: Iterable[list[Pack]]) -> int:
        """Log-probs of the answers that are not yet known, from the policy as it is now -> how many were computed.

        Of several processes, which all see the same packs, each computes its share, and as many forwards.
        """
        was_training, before, world = forward.model.training, len(self.known), ranks.world()
        forward.model.eval()
        fresh = self._fresh(chain.from_iterable(updates))
        while turn := list(islice(fresh, world)):
            mine = ranks.rank() < len(turn)
            pack, new = turn[ranks.rank() if mine else 0]
            here = pack.to(forward.device)
            sums = answer_sums(forward(here, ("logprobs",)).logprobs_T, here).tolist()
            if mine:
                self.known |= {key: sums[i] for key, i in new.items()}
        forward.model.train(was_training)
        made = list(self.known)[before:]
        totals = ranks.add_up([self.known[key] for key in made])
        self.known |= dict(zip(made, totals, strict=True))
        return len(made)

    def _fresh(self, packs: Iterable[Pack]) -> Iterator[tuple[Pack, dict[bytes, int]]]:
        """Packs with answers that are not known, and which; from then on they are, as 0 until they are computed."""
        for pack in packs:
            if new := {key: i for i, key in enumerate(_keys(pack)) if key not in self.known}:
                self.known |= dict.fromkeys(new, 0.0)
                yield pack, new

    def save(self, under: str) -> str:
        """Write them whole or not at all, with what they were made under -> the file's SHA-256."""
        keys = torch.from_numpy(np.frombuffer(b"".join(self.known), np.uint8).reshape(len(self.known), -1).copy())
        beside = self.path.with_name(f".{FILE}.partial")
        with writing(self.path):
            save_file({"keys": keys, "logprobs": torch.tensor(list(self.known.values()), dtype=torch.float64)}, beside,
                      metadata={"under": under})
            flush(beside)
            beside.replace(self.path)
            flush_folder(self.path.parent)
        return sha256(self.path)

    def answers(self, pack: Pack) -> torch.Tensor:
        """Log-prob of each answer, nats: a pack -> [S] float64."""
        try:
            return torch.tensor([self.known[k] for k in _keys(pack)], dtype=torch.float64, device=pack.ids_T.device)
        except KeyError:
            raise self._unknown(pack) from None

    def check(self, updates: Iterable[list[Pack]]) -> None:
        """Stop where a row of these is not known: what the policy gave it as it started cannot be computed any more."""
        for pack in chain.from_iterable(updates):
            if not all(key in self.known for key in _keys(pack)):
                raise self._unknown(pack)

    def _unknown(self, pack: Pack) -> UserError:
        return UserError("the reference does not know a row of this run", where=str(self.path),
                         found=f"a row of {', '.join(sorted(set(pack.origins))[:4])}",
                         expected="the rows with which the run began: of others nothing was computed as it started",
                         fix="put data, max_steps and num_train_epochs back as they were, or start a new run")


def _key(ids, weights) -> bytes:
    made = blake2b(np.ascontiguousarray(ids, np.int32).tobytes(), digest_size=16)
    made.update(np.ascontiguousarray(weights, np.float32).tobytes())
    return made.digest()


def _keys(pack: Pack) -> list[bytes]:
    ids, weights = pack.ids_T.cpu().numpy(), pack.weights_T.cpu().numpy()
    return [_key(ids[a:b], weights[a:b - 1]) for a, b in zip(pack.bounds, pack.bounds[1:], strict=False)]


def starting_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of the adapter that is continued, in the type that the model will compute in."""
    return {name: as_lowered(policy, name, p.data) for name, p in policy.model.named_parameters() if p.requires_grad}


def as_lowered(policy: Policy, name: str, weight: torch.Tensor) -> torch.Tensor:
    """A copy of a weight of this name, rounded as the optimizer's `lower` rounds what trains."""
    copy = weight.clone()
    if policy.dtype != torch.bfloat16 or copy.dtype != torch.float32 or any(
            kept in name for kept in kept_wide(policy.model)):
        return copy
    high, low = torch.empty_like(copy, dtype=policy.dtype), torch.empty_like(copy, dtype=torch.int16)
    split(copy.view(-1), high.view(-1), low.view(-1))
    return high


def open_reference(settings: Settings, forward: Forward, started: dict[str, torch.Tensor] | None, folder: Path,
                   loader: Any, held: list[list[Sequence]], step: int,
                   note: Callable[[str], None], arrange: Callable[[Any], Any],
                   facts: dict[str, Any]) -> Reference | Remembered:
    """The reference of a run that is at update `step`, which a line of the run tells.

    `facts`, which every checkpoint holds, knows its file by a checksum.
    """
    if settings.adapts:
        note("reference: " + ("the base, with the adapters off" if started is None else
                              "a frozen copy of the adapter that is continued"))
        return Reference(forward, started)
    reference, began = Remembered(folder), time.perf_counter()
    shared = any(s["share"] is not None for s in loader.opened.sources)
    mixed = settings.objective == "kto"  # whose prompts meet other answers in each epoch
    count = loader.total if shared or mixed else min(loader.total, loader.updates_per_epoch)
    updates = (arrange(b.atoms) for b in islice(loader.batches(), count) if b.atoms)
    packs = (lay_packs(atoms, settings.pack_tokens) for atoms in chain(updates, [held]))
    if step:
        reference.recall(facts.get("reference"))
        if settings.allow_changes:  # else they are those that it learnt
            reference.check(packs)
    else:
        under = digest([facts["conditions"], facts["base_hash"]])
        reference.reuse(under)
        made = reference.learn(forward, packs)
        if ranks.first():
            facts["reference"] = reference.save(under)
        note(f"reference: log-probs of {len(reference.known):,} answers, {made:,} of them computed now in "
             f"{time.perf_counter() - began:.0f} s, kept in {reference.path}")
    return reference
