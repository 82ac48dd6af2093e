#!/usr/bin/env python3
"""saesweep beside the libraries people use, on this machine: training beside dictionary_learning,
harvesting beside transformers. See README.md for what is installed how, and what is compared.

    peers.py train [--n 1 4 16] [--arch topk batchtopk standard jumprelu] [--precision fp32 bf16]
    peers.py harvest
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
K, L1, L0_TARGET, STEPS = 32, 0.04, 32, 100_000


def ours(program, *arguments):
    found = subprocess.run(
        [program, "bench", *map(str, arguments), "--json"], capture_output=True, text=True
    )
    if found.returncode != 0:
        sys.exit(f"{program} bench {' '.join(map(str, arguments))}: {found.stderr or found.stdout}")
    return json.loads(found.stdout)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return os.uname().machine


class Clock:
    """Medians of rounds, as rates a second and a second of processor time."""

    def __init__(self):
        self.wall, self.cpu = [], []

    def measure(self, work):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def rates(self, units):
        return units / statistics.median(self.wall), units / statistics.median(self.cpu)


# ---- training -----------------------------------------------------------------------------------


def trainers_of_dictionary_learning():
    # Only the trainers are used; what harvests activations and reports need not be installed.
    for absent in ("nnsight", "wandb", "datasets", "zstandard"):
        if importlib.util.find_spec(absent) is None:
            sys.modules[absent] = types.ModuleType(absent)
            sys.modules[absent].LanguageModel = sys.modules[absent].load_dataset = None
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    return {
        "topk": (TopKTrainer, {"k": K}),
        "batchtopk": (BatchTopKTrainer, {"k": K}),
        "standard": (StandardTrainerAprilUpdate, {"l1_penalty": L1}),
        "jumprelu": (JumpReluTrainer, {"target_l0": L0_TARGET}),
    }


def sparse_rows(rows, d):
    """As `saesweep bench train` makes them: sums of 16 of 1024 random directions, in bf16."""
    import torch

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(1024, d, generator=generator) / d**0.5
    chosen = torch.randint(1024, (rows, 16), generator=generator)
    weights = torch.rand(rows, 16, generator=generator)
    made = torch.stack([w @ directions[c] for w, c in zip(weights, chosen)])
    return made.to(torch.bfloat16)


def train_peer(trainers, arch, options, rows):
    import torch

    kind, own = trainers[arch]
    saes = [
        kind(
            steps=STEPS, activation_dim=options.d_in, dict_size=options.d_sae, layer=0,
            lm_name="none", device="cpu", seed=seed, **own,
        )
        for seed in range(options.saes)
    ]
    step = 0

    def work():
        nonlocal step
        for _ in range(options.steps):
            # Each batch is read once for all trainers, as the library's trainSAE does.
            chosen = torch.randint(len(rows), (options.batch,))
            batch = rows[chosen].float()
            for sae in saes:
                sae.update(step, batch)
            step += 1

    work()  # warms up
    clock = Clock()
    for _ in range(options.rounds):
        clock.measure(work)
    return clock.rates(options.saes * options.steps * options.batch)


def train(options):
    try:
        trainers = trainers_of_dictionary_learning()
    except ImportError as missing:
        sys.exit(f"{missing}; README.md says what to install")
    import torch

    torch.set_num_threads(os.cpu_count() if options.threads == 0 else options.threads)
    rows = sparse_rows(8 * options.batch, options.d_in)
    print(
        f"{processor()}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}; d {options.d_in}, F {options.d_sae}, batch {options.batch}, "
        f"k {K}, fp32 there; SAE-tokens a second"
    )
    print(f"{'':<10} {'N':>3} {'':<5} {'saesweep':>10} {'dictionary_learning':>20} {'ratio':>7} "
          f"{'ratio of processor time':>24}")
    results = []
    for arch in options.arch:
        for saes in options.n:
            options.saes = saes
            peer, peer_cpu = train_peer(trainers, arch, options, rows)
            for precision in options.precision:
                measured = ours(
                    options.saesweep, "train", "--arch", arch, "-n", saes, "--d-in", options.d_in,
                    "--d-sae", options.d_sae, "--k", K, "--batch", options.batch,
                    "--precision", precision, "--steps", options.steps,
                    "--rounds", options.rounds, "--threads", options.threads,
                )
                rate, cpu = measured["sae_tokens_per_s"], measured["sae_tokens_per_cpu_s"]
                print(f"{arch:<10} {saes:>3} {precision:<5} {rate:>10.0f} {peer:>20.0f} "
                      f"{rate / peer:>7.1f} {cpu / peer_cpu:>24.1f}", flush=True)
                results.append({
                    "arch": arch, "n": saes, "precision": precision, "sae_tokens_per_s": rate,
                    "sae_tokens_per_cpu_s": cpu, "peer_sae_tokens_per_s": peer,
                    "peer_sae_tokens_per_cpu_s": peer_cpu, "versions": measured["versions"],
                })
    return results


# ---- harvesting ---------------------------------------------------------------------------------


def harvest(options):
    try:
        import torch
        from transformers import GPT2Config, GPT2Model
    except ImportError as missing:
        sys.exit(f"{missing}; README.md says what to install")
    torch.set_num_threads(os.cpu_count() if options.threads == 0 else options.threads)
    context, vocabulary = 59, 61  # of games of Othello, which are our documents
    config = GPT2Config(
        n_layer=12, n_embd=768, n_head=12, n_inner=3072, n_positions=context,
        vocab_size=vocabulary, activation_function="gelu",
    )
    torch.manual_seed(0)
    model = GPT2Model(config).eval()

    class Enough(Exception):
        pass

    def stop(_module, _inputs, _output):
        raise Enough

    model.h[8].register_forward_hook(stop)
    tokens = torch.randint(vocabulary, (options.games, context))

    def work():
        with torch.no_grad():
            for batch in tokens.split(options.sequences):
                try:
                    model(batch)
                except Enough:
                    pass

    work()
    clock = Clock()
    for _ in range(options.rounds):
        clock.measure(work)
    peer, peer_cpu = clock.rates(options.games * context)
    measured = ours(
        options.saesweep, "harvest", "--layers", 12, "--d-model", 768, "--heads", 12, "--d-mlp",
        3072, "--board", 8, "--hook", "blocks.8.hook_resid_post", "--games", options.games,
        "--rounds", options.rounds, "--threads", options.threads,
    )
    rate = measured["tokens_per_s"]
    print(f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}")
    print(f"GPT-2 small's shape, random weights, fp32, sequences of {context}, to the residual "
          f"stream after block 8, no further; tokens a second")
    print(f"saesweep {rate:.0f}, transformers {peer:.0f}, ratio {rate / peer:.2f}")
    return [{"tokens_per_s": rate, "peer_tokens_per_s": peer, "peer_tokens_per_cpu_s": peer_cpu}]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "harvest"])
    parser.add_argument("--saesweep", default=str(ROOT / "build/release/bin/saesweep"))
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--arch", nargs="+", default=["topk", "batchtopk", "standard", "jumprelu"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1, help="of each SAE, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--games", type=int, default=128, help="harvest: a round")
    parser.add_argument("--sequences", type=int, default=32, help="harvest: in transformers' batch")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", metavar="FILE", help="writes what was measured")
    options = parser.parse_args()
    results = {"train": train, "harvest": harvest}[options.what](options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
