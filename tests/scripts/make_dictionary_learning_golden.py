#!/usr/bin/env python3
"""Writes tests/worker/training/golden/: what dictionary_learning's trainers make of given weights
and batches in 100 steps, for the test that ours make the same of them.

    python3 -m venv venv
    venv/bin/pip install torch==2.11.0 numpy safetensors einops tqdm
    venv/bin/pip install --no-deps dictionary-learning==0.1.0
    venv/bin/python tests/scripts/make_dictionary_learning_golden.py

inputs.safetensors  rows [640, 16], of which step t takes 64 from 64 * t on, round and round;
                    W_dec, W_enc, b_enc of the start (the ReLU family; all others: W_dec and W_enc
                    times 10; the TopK family: b_enc_topk), b_mag and r_mag of the gated family,
                    threshold of jumprelu
<case>.safetensors  W_enc, b_enc (gated: the gate's), W_dec, b_dec and what the start has more after
                    100 steps, losses [100], in the metadata the settings; of the TopK family also
                    threshold and tokens_since_fired
"""

import json
import pathlib
import sys
import types

import torch
from safetensors.torch import save_file

# Only the trainers are used; what harvests activations and reports is not installed.
for absent in ("nnsight", "wandb", "datasets", "zstandard"):
    sys.modules.setdefault(absent, types.ModuleType(absent))
sys.modules["nnsight"].LanguageModel = object
sys.modules["datasets"].load_dataset = None

from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # noqa: E402
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer  # noqa: E402
from dictionary_learning.trainers.gdm import GatedSAETrainer  # noqa: E402
from dictionary_learning.trainers.jumprelu import JumpReluTrainer  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import (  # noqa: E402
    MatryoshkaBatchTopKTrainer,
)
from dictionary_learning.trainers.p_anneal import PAnnealTrainer  # noqa: E402
from dictionary_learning.trainers.standard import (  # noqa: E402
    StandardTrainer,
    StandardTrainerAprilUpdate,
)
from dictionary_learning.trainers.top_k import TopKTrainer  # noqa: E402

STEPS, BATCH, D, F, K = 100, 64, 16, 64, 6
OUT = pathlib.Path(__file__).resolve().parent.parent / "worker/training/golden"


def make_inputs():
    generator = torch.Generator().manual_seed(5)
    atoms = torch.randn(24, D, generator=generator)
    atoms /= atoms.norm(dim=1, keepdim=True)
    on = torch.rand(640, 24, generator=generator) < 0.15
    rows = (on * (0.5 + torch.rand(640, 24, generator=generator))) @ atoms
    rows += 0.2 * torch.randn(D, generator=generator)
    rows += 0.02 * torch.randn(640, D, generator=generator)
    w_dec = torch.randn(F, D, generator=generator)
    w_dec *= 0.1 / w_dec.norm(dim=1, keepdim=True)
    b_enc = (2 * torch.rand(F, generator=generator) - 1) / D**0.5
    # Latents that lose the competition for the k places and die, though they have something to say.
    b_enc_topk = torch.zeros(F)
    b_enc_topk[:16] = -0.6
    b_mag = 0.1 * torch.randn(F, generator=generator)
    r_mag = 0.2 * torch.randn(F, generator=generator)
    threshold = 0.02 + 0.1 * torch.rand(F, generator=generator)
    return {"rows": rows, "W_dec": w_dec, "W_enc": w_dec.clone(), "b_enc": b_enc,
            "b_enc_topk": b_enc_topk, "b_mag": b_mag, "r_mag": r_mag, "threshold": threshold}


COMMON = dict(lr=2e-3, warmup_steps=10, decay_start=80)
TOPK = dict(k=K, auxk_alpha=1 / 32, threshold_beta=0.9, threshold_start_step=50, **COMMON)
RELU = dict(sparsity_warmup_steps=20, **COMMON)
ANNEAL = dict(initial_sparsity_penalty=0.05, anneal_start=30, n_sparsity_updates=5, **RELU)
DEAD_AFTER = 192
# p ends at 0.4: with 0.2, 100 steps of the library in float32 and in float64 are 5e-4 apart, since
# f^(p-1) magnifies the rounding of small f. With 0.4 they are 7e-6 apart.
CASES = {
    "topk": (TopKTrainer, TOPK),
    "batchtopk": (BatchTopKTrainer, TOPK),
    "standard": (StandardTrainerAprilUpdate, dict(l1_penalty=0.05, **RELU)),
    "standard_bricken": (StandardTrainer, dict(l1_penalty=0.05, **RELU)),
    "p_anneal": (PAnnealTrainer, dict(sparsity_function="Lp^p", p_end=0.4, **ANNEAL)),
    "p_anneal_lp": (PAnnealTrainer, dict(sparsity_function="Lp", p_end=0.5, **ANNEAL)),
    "gated": (GatedSAETrainer, dict(l1_penalty=0.05, **RELU)),
    "gated_p_anneal": (GatedAnnealTrainer, dict(sparsity_function="Lp^p", p_end=0.4, **ANNEAL)),
    "jumprelu": (JumpReluTrainer, dict(target_l0=5.0, sparsity_penalty=0.5, bandwidth=0.05, **RELU)),
    "matryoshka": (MatryoshkaBatchTopKTrainer,
                   dict(group_fractions=[0.125, 0.25, 0.625], **TOPK)),
}
OF_TOPK = (TopKTrainer, BatchTopKTrainer, MatryoshkaBatchTopKTrainer)
OF_RELU = (StandardTrainer, StandardTrainerAprilUpdate, PAnnealTrainer)


def parameters_of(ae):
    """The tensors of a dictionary by our names, the encoder [F, D], as views to write into."""
    if hasattr(ae, "W_enc"):
        named = {"W_enc": ae.W_enc.T, "b_enc": ae.b_enc, "W_dec": ae.W_dec, "b_dec": ae.b_dec}
        if isinstance(ae.threshold, torch.nn.Parameter):
            named["threshold"] = ae.threshold
        return named
    named = {"W_enc": ae.encoder.weight, "W_dec": ae.decoder.weight.T}
    if hasattr(ae, "gate_bias"):
        return named | {"b_enc": ae.gate_bias, "b_mag": ae.mag_bias, "r_mag": ae.r_mag,
                        "b_dec": ae.decoder_bias}
    return named | {"b_enc": ae.encoder.bias, "b_dec": ae.b_dec if hasattr(ae, "b_dec") else ae.bias}


def train(name, inputs):
    trainer_class, settings = CASES[name]
    trainer = trainer_class(steps=STEPS, activation_dim=D, dict_size=F, layer=0, lm_name="",
                            device="cpu", seed=0, **settings)
    ae = trainer.ae
    of_topk = trainer_class in OF_TOPK
    with torch.no_grad():
        for key, tensor in parameters_of(ae).items():
            if key in ("W_enc", "W_dec"):
                tensor.copy_(inputs[key] * (1.0 if trainer_class in OF_RELU else 10.0))
            elif key != "b_dec":
                tensor.copy_(inputs["b_enc_topk" if of_topk and key == "b_enc" else key])
    if of_topk:
        trainer.dead_feature_threshold = DEAD_AFTER
    losses, dead = [], 0
    for step in range(STEPS):
        first = step * BATCH % len(inputs["rows"])
        batch = inputs["rows"][first : first + BATCH]
        if of_topk:
            losses.append(trainer.update(step, batch))
            dead += max(trainer.dead_features, 0)
        else:
            # The loss of the step, without its side effects.
            original = trainer.loss
            seen = []

            def loss(*args, **kwargs):
                seen.append(original(*args, **kwargs))
                return seen[-1]

            trainer.loss = loss
            trainer.update(step, batch)
            trainer.loss = original
            losses.append(seen[0].item())
    tensors = {key: tensor.detach().contiguous() for key, tensor in parameters_of(ae).items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    if of_topk:
        tensors["threshold"] = torch.as_tensor(ae.threshold, dtype=torch.float32).reshape(1)
        tensors["tokens_since_fired"] = trainer.num_tokens_since_fired
    shown = dict(settings, steps=STEPS, batch=BATCH)
    if of_topk:
        shown.update(dead_after_tokens=DEAD_AFTER)
        print(f"{name}: {dead / STEPS:.1f} dead latents a step")
    print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}")
    save_file(tensors, OUT / f"{name}.safetensors", metadata={"settings": json.dumps(shown)})


def main():
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs()
    save_file(inputs, OUT / "inputs.safetensors")
    for name in CASES:
        train(name, inputs)


if __name__ == "__main__":
    main()
