"""Several models on one frozen base: each role is an adapter, switched on before it runs."""

from __future__ import annotations

import copy
import warnings

import torch

from ..core.seeds import seed_for
from .forward import Forward, Outputs

POLICY, CRITIC, REWARD, REFERENCE = "default", "critic", "reward", "reference"


class Switch:
    """Which adapter of a PEFT model is on; None is the base alone.

    PEFT freezes the adapters that it switches off, and a frozen leaf drops its gradient even in a backward that has
    already begun, so what trains is settled once, here, and put back after every switch
    (test_ppo.py::test_two_passes_are_one_gradient).
    """

    def __init__(self, model, trained: tuple[str, ...]):
        self.model, self.on = model, POLICY
        self.flags = [(p, any(f".{name}." in n for name in trained)) for n, p in model.named_parameters()
                      if _is_adapter(n)]
        self._settle()

    def to(self, name: str | None) -> None:
        """Turn this adapter on and every other off."""
        if name == self.on:
            return
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            if self.on is None:
                self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(name)
        self.on = name
        self._settle()

    def _settle(self) -> None:
        for p, trains in self.flags:
            p.requires_grad_(trains)


class Role:
    """A forward of one role: `role(pack, needs)` is that of the base with the role's adapter on."""

    def __init__(self, forward: Forward, switch: Switch, name: str | None):
        self.forward, self.switch, self.name = forward, switch, name

    def __call__(self, pack, needs=("logprobs",), temperature: float = 1.0) -> Outputs:
        self.switch.to(self.name)
        return self.forward(pack, needs, temperature)

    @property
    def model(self):
        """The model to be sampled from, with this role's adapter on."""
        self.switch.to(self.name)
        return self.forward.model

    def __getattr__(self, name: str):
        """Whatever else a Forward has is the base's: device, align, noise."""
        return getattr(self.forward, name)


def add_critic(model, seed: int) -> None:
    """A trained adapter of the policy's shape whose first forward is the base's: B is zero."""
    config = copy.deepcopy(model.peft_config[POLICY])
    config.inference_mode, config.trainable_token_indices = False, None
    torch.manual_seed(seed_for(seed, "critic"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about fan_in_fan_out, which it sets itself
        model.add_adapter(CRITIC, config)
    for name, p in model.named_parameters():
        if f".{CRITIC}." in name:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
            p.requires_grad_(True)  # PEFT adds adapters frozen; the optimizer takes what trains


def without_dropout(model) -> None:
    """Every dropout of the model at 0: what is sampled, what was, and what is trained are one distribution.

    A dropout is a module, or a rate that a module (or, at each forward, its config) holds by name, as in OPT, Llama and
    Falcon; Mixtral's routers have a noise of training instead (test_reinforce_keys.py::
    test_dropout_is_off_however_a_model_has_it).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for owner in (module, getattr(module, "config", None)):
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if isinstance(value, float) and ("drop" in name or name == "jitter_noise"):
                    setattr(owner, name, 0.0)


def of_another_role(name: str) -> bool:
    """Whether a trained weight is no part of the model that answers: the critic's, which a checkpoint holds too."""
    return f".{CRITIC}." in name


def _is_adapter(name: str) -> bool:
    return any(f".{role}." in name or name.endswith(f".{role}") for role in (POLICY, CRITIC, REWARD, REFERENCE))
