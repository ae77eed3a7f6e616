"""RMSNorm and the gated MLP with less kept for the backward: verified per class, then put in place per module.

transformers writes both out operation by operation, in float32 for the norm; each operation keeps its result for the
backward. Here the norm keeps its input and one number per row, and the MLP its two products, and both work through the
rows in pieces that stay in a processor's cache.
"""

from __future__ import annotations

import inspect
from types import MethodType

import torch
import torch.nn.functional as F

# Elements worked on at once on CPU: their float32 copies stay in a core's cache (bench of 2,048 × 256 to 16,384 × 128).
PIECE = 1 << 18
meta_counts = "cpu"  # the device whose memory is counted on the meta device


def fuse(model, twin=lambda module: module) -> int:
    """Replace the forwards of norms and gated MLPs that compute what ours do -> how many were replaced.

    Each class (and width) is tried on random rows first; one whose result differs in a single bit, such as Gemma's
    norm, which scales by 1 + w, keeps its own: what is trained so is what any other tool serves (test_fused.py).
    float64 models keep their own everywhere, since transformers' norms compute in float32 even there. `twin` gives the
    module that is tried in a module's place.
    """
    found, verdicts = 0, {}
    for module in model.modules():
        for kind, forward in ((_is_norm, _norm), (_is_mlp, _mlp)):
            if not kind(module):
                continue
            weight = next(module.parameters())
            key = type(module), weight.shape, weight.dtype, weight.device
            if key not in verdicts:
                verdicts[key] = _agrees(twin(module), forward)
            if verdicts[key]:
                module.forward = MethodType(forward, module)
                found += 1
    return found


def _is_norm(module) -> bool:
    weights = [n for n, _ in module.named_parameters()]
    return weights == ["weight"] and module.weight.dim() == 1 and _epsilon(module) is not None and _takes_one(module)


def _is_mlp(module) -> bool:
    parts = {n for n, _ in module.named_children()}
    return parts == {"gate_proj", "up_proj", "down_proj", "act_fn"} and _takes_one(module) and not any(
        hasattr(module, name) for name in ("activation_sparsity", "pretraining_tp"))


def _takes_one(module) -> bool:
    return len(inspect.signature(type(module).forward).parameters) == 2  # itself and the rows


def _epsilon(module) -> float | None:
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


@torch.no_grad()
def _agrees(module, forward) -> bool:
    own = next((p for p in module.parameters() if p.is_floating_point()), None)
    width = len(module.weight) if _is_norm(module) else getattr(module, "hidden_size", None)
    dtype = None if own is None else own.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16) or width is None:
        return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, width, generator=generator).to(own.device, dtype)
    was_training = module.training
    module.eval()
    same = torch.equal(type(module).forward(module, rows), forward(module, rows))
    module.train(was_training)
    return same


def _norm(self, hidden_states):
    """Instead of an RMSNorm's forward: [..., D] -> [..., D] in the type of the input."""
    return _RMSNorm.apply(hidden_states, self.weight, _epsilon(self))


class _RMSNorm(torch.autograd.Function):
    """y = w · x̂,  x̂ = x · r,  r = (mean(x²) + eps)^(−1/2)  (Zhang & Sennrich 2019, eq. 4), keeping x and r.

    [..., D], [D] -> [..., D]. dx = r · (g w − x̂ · mean(g w x̂)), dw = Σ g x̂; float32 inside.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        x_ND = x.reshape(-1, x.shape[-1])
        out_ND = torch.empty_like(x_ND)
        r_N = torch.empty(len(x_ND), 1, dtype=torch.float32, device=x.device)
        for at in row_pieces(x_ND):
            wide = x_ND[at].to(torch.float32, copy=True)
            r_N[at] = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            torch.mul(weight, wide.mul_(r_N[at]).to(x.dtype), out=out_ND[at])  # rounded where transformers rounds
        ctx.save_for_backward(x_ND, weight, r_N)
        return out_ND.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        x_ND, weight, r_N = ctx.saved_tensors
        grad_ND, dx_ND = grad.reshape(x_ND.shape), torch.empty_like(x_ND)
        dw = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for at in row_pieces(x_ND):
            r, unit, wide = r_N[at], x_ND[at].to(torch.float32, copy=True), grad_ND[at].to(torch.float32, copy=True)
            unit.mul_(r)
            dw += torch.linalg.vecdot(wide, unit, dim=0)
            wide.mul_(weight)
            mean = torch.linalg.vecdot(wide, unit).div_(unit.shape[-1])[:, None]
            dx_ND[at] = wide.addcmul_(unit, mean, value=-1).mul_(r)
        return dx_ND.view(grad.shape), dw.to(weight.dtype), None


def row_pieces(x_ND: torch.Tensor) -> list[slice]:
    """Slices over the rows of [N, D] that are worked on at once: a few on CPU, all on CUDA.

    On torch's meta device, where memory is counted and nothing is computed, the first piece stands for all.
    """
    kind = meta_counts if x_ND.is_meta else x_ND.device.type
    rows = max(1, PIECE // x_ND.shape[1]) if kind == "cpu" else max(1, len(x_ND))
    pieces = [slice(a, a + rows) for a in range(0, len(x_ND), rows)]
    return pieces[:1] if x_ND.is_meta else pieces


def _mlp(self, x):
    """Instead of a gated MLP's forward: down(silu(gate(x)) · up(x)); a plain `down` keeps no middle either."""
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if type(down) is torch.nn.Linear and down.bias is None:
        return _GatedDown.apply(gate, up, down.weight)
    return down(_Gated.apply(gate, up))  # adapters and quantised layers are called


def _gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate).mul_(up)


def _gated_backward(gate, up, grad):
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class _Gated(torch.autograd.Function):
    """h = silu(gate) · up (Shazeer 2020, "GLU Variants Improve Transformer", eq. 6), keeping gate and up alone."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx, grad):
        return _gated_backward(*ctx.saved_tensors, grad)


class _GatedDown(torch.autograd.Function):
    """h W^T with h = silu(gate) · up made again in the backward: [..., I], [..., I], [D, I] -> [..., D]."""

    @staticmethod
    def forward(ctx, gate, up, weight):
        ctx.save_for_backward(gate, up, weight)
        return F.linear(_gated(gate, up), weight)

    @staticmethod
    def backward(ctx, grad):
        gate, up, weight = ctx.saved_tensors
        d_weight = None
        if ctx.needs_input_grad[2]:
            d_weight = grad.flatten(0, -2).t() @ _gated(gate, up).flatten(0, -2)
        d_gate = d_up = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            d_gate, d_up = _gated_backward(gate, up, grad @ weight)
        return d_gate, d_up, d_weight
