#!/usr/bin/env python3
"""saesweep beside the libraries people use, on this machine: training beside dictionary_learning,
what training arrives at, harvesting beside transformers. See README.md for what is installed how,
and what is compared.

    peers.py train [--n 1 4 16] [--arch topk batchtopk standard jumprelu] [--precision fp32 bf16]
    peers.py quality [--arch ...] [--precision ...] [--seeds 3]
    peers.py harvest [--precision fp32 bf16]
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
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
    import torch

    trainers = trainers_of_dictionary_learning()
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


# ---- what training arrives at -------------------------------------------------------------------

QUALITY = {"d": 64, "features": 256, "active": 8, "rows": 1 << 18, "held_out": 1 << 14}
QUALITY_RUN = {"d_sae": 512, "batch": 512, "steps": 4000, "lr": 1e-3, "warmup": 200,
               "sparsity_warmup": 1000, "decay": 3200}
QUALITY_KEYS = {"topk": {"k": 16}, "batchtopk": {"k": 16}, "standard": {"l1": 0.1},
                "jumprelu": {"l0_target": 16}}


def planted_rows(count, seed):
    """Sums of about 8 of 256 planted directions, of mean square norm 1: [count, 64] fp32."""
    import torch

    d, features = QUALITY["d"], QUALITY["features"]
    planted = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(features, d, generator=planted), dim=1)
    drawn = torch.Generator().manual_seed(seed)
    active = torch.rand(count, features, generator=drawn) < QUALITY["active"] / features
    rows = (active * (0.5 + torch.rand(count, features, generator=drawn))) @ directions
    return rows / rows.square().sum(1).mean().sqrt()


def fve_and_l0(rows, encoded, decoded):
    residual = (rows - decoded).square().sum()
    total = (rows - rows.mean(0)).square().sum()
    return float(1 - residual / total), float((encoded != 0).float().sum(1).mean())


def quality_of_peer(trainers, arch, seed, rows, held_out):
    import torch

    run, kind = QUALITY_RUN, trainers[arch][0]
    keys = {"l1_penalty" if key == "l1" else "target_l0" if key == "l0_target" else key: value
            for key, value in QUALITY_KEYS[arch].items()}
    if "k" not in keys:
        keys["sparsity_warmup_steps"] = run["sparsity_warmup"]
    trainer = kind(
        steps=run["steps"], activation_dim=QUALITY["d"], dict_size=run["d_sae"], layer=0,
        lm_name="none", device="cpu", seed=seed, lr=run["lr"], warmup_steps=run["warmup"],
        decay_start=run["decay"], **keys,
    )
    shuffled = torch.Generator().manual_seed(seed)
    step = 0
    while step < run["steps"]:
        for chosen in torch.randperm(len(rows), generator=shuffled).split(run["batch"]):
            if step == run["steps"]:
                break
            trainer.update(step, rows[chosen])
            step += 1
    with torch.no_grad():
        if arch == "batchtopk":
            encoded = trainer.ae.encode(held_out, use_threshold=True)
        elif arch == "topk":
            encoded = trainer.ae.encode(held_out, use_threshold=False)
        else:
            encoded = trainer.ae.encode(held_out)
        return fve_and_l0(held_out, encoded, trainer.ae.decode(encoded))


def quality_of_ours(folder, held_out):
    """As the README says that an exported SAE is read."""
    from safetensors.torch import load_file

    sae = load_file(folder / "sae.safetensors")
    config = json.loads((folder / "config.json").read_text())
    arch = config["architecture"]
    read = held_out if arch == "jumprelu" else held_out - sae["b_dec"]
    encoded = read @ sae["W_enc"].T + sae["b_enc"]
    if arch != "jumprelu":
        encoded = encoded.relu()
    if arch == "topk":
        kept = encoded.topk(config["parameters"]["k"], dim=1)
        encoded = encoded.new_zeros(encoded.shape).scatter_(1, kept.indices, kept.values)
    elif "threshold" in sae:
        encoded = encoded * (encoded > sae["threshold"])
    return fve_and_l0(held_out, encoded, encoded @ sae["W_dec"] + sae["b_dec"])


def train_ours(options, folder, seeds):
    run = QUALITY_RUN
    families = []
    for arch in options.arch:
        keys = dict(QUALITY_KEYS[arch], arch=arch)
        if "k" not in keys:
            keys["sparsity_warmup_steps"] = run["sparsity_warmup"]
        families.append(keys)
    for precision in options.precision:
        sweep = {
            "name": f"quality-{precision}",
            "data": {"source": "activations", "path": str(folder / "rows.safetensors"),
                     "tensor": "x"},
            "activations": {"tokens": QUALITY["rows"] * 49 // 50, "dtype": "fp32",
                            "normalize": "none", "holdout": "2%"},
            "train": {"tokens": run["steps"] * run["batch"], "batch": run["batch"],
                      "d_sae": run["d_sae"], "lr": run["lr"], "warmup_steps": run["warmup"],
                      "decay_start": run["decay"], "device": "cpu", "precision": precision,
                      "seed": list(range(seeds))},
            "trials": families,
            "evaluate": [{"core": {"tokens": "2k"}}],
        }
        path = folder / f"{sweep['name']}.yaml"
        path.write_text(json.dumps(sweep))  # every JSON is YAML
        done = subprocess.run(
            [options.saesweep, "run", path, "--state", folder / "state", "--out",
             folder / precision],
            capture_output=True, text=True,
        )
        if done.returncode != 0:
            sys.exit(f"saesweep run: {done.stderr or done.stdout}")
        for trial in (folder / precision).rglob("sae.safetensors"):
            yield precision, trial.parent


def quality(options):
    from safetensors.torch import save_file

    trainers = trainers_of_dictionary_learning()
    rows, held_out = planted_rows(QUALITY["rows"], 1), planted_rows(QUALITY["held_out"], 2)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        save_file({"x": rows.contiguous()}, folder / "rows.safetensors")
        for precision, trial in train_ours(options, folder, options.seeds):
            arch = json.loads((trial / "config.json").read_text())["architecture"]
            found.setdefault((arch, f"saesweep {precision}"), []).append(
                quality_of_ours(trial, held_out))
    for arch in options.arch:
        for seed in range(options.seeds):
            found.setdefault((arch, "dictionary_learning"), []).append(
                quality_of_peer(trainers, arch, seed, rows, held_out))
    print(f"{QUALITY} {QUALITY_RUN}, {options.seeds} seeds; held-out rows that neither was given")
    print(f"{'':<10} {'':<20} {'FVE, mean':>10} {'least':>8} {'most':>8} {'L0, mean':>10} "
          f"{'least':>8} {'most':>8}")
    results = []
    for (arch, who), scores in sorted(found.items()):
        fve, l0 = zip(*scores)
        print(f"{arch:<10} {who:<20} {statistics.mean(fve):>10.4f} {min(fve):>8.4f} "
              f"{max(fve):>8.4f} {statistics.mean(l0):>10.2f} {min(l0):>8.2f} {max(l0):>8.2f}")
        results.append({"arch": arch, "who": who, "fve": fve, "l0": l0})
    return results


# ---- harvesting ---------------------------------------------------------------------------------


def harvest(options):
    import torch
    from transformers import GPT2Config, GPT2Model

    context, vocabulary = 59, 61  # of games of Othello, which are our documents
    config = GPT2Config(
        n_layer=12, n_embd=768, n_head=12, n_inner=3072, n_positions=context,
        vocab_size=vocabulary, activation_function="gelu", bos_token_id=None, eos_token_id=None,
    )
    class Enough(Exception):
        pass

    def stop(_module, _inputs, _output):
        raise Enough

    tokens = torch.randint(vocabulary, (options.games, context))
    print(f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}")
    print(f"GPT-2 small's shape, random weights, sequences of {context}, to the residual stream "
          f"after block 8, no further; tokens a second")
    results = []
    for precision in options.precision:
        torch.manual_seed(0)
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        model = GPT2Model(config).eval().to(kind)
        model.h[8].register_forward_hook(stop)

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
            options.saesweep, "harvest", "--layers", 12, "--d-model", 768, "--heads", 12,
            "--d-mlp", 3072, "--board", 8, "--hook", "blocks.8.hook_resid_post", "--games",
            options.games, "--precision", precision, "--rounds", options.rounds, "--threads",
            options.threads,
        )
        rate, cpu = measured["tokens_per_s"], measured["tokens_per_cpu_s"]
        print(f"{precision}: saesweep {rate:.0f}, transformers {peer:.0f}, ratio {rate / peer:.2f}, "
              f"of processor time {cpu / peer_cpu:.2f}", flush=True)
        results.append({"precision": precision, "tokens_per_s": rate, "tokens_per_cpu_s": cpu,
                        "peer_tokens_per_s": peer, "peer_tokens_per_cpu_s": peer_cpu,
                        "versions": measured["versions"]})
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "quality", "harvest"])
    parser.add_argument("--saesweep", default=str(ROOT / "build/release/bin/saesweep"))
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--arch", nargs="+", default=["topk", "batchtopk", "standard", "jumprelu"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1, help="of each SAE, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="quality: of each kind")
    parser.add_argument("--games", type=int, default=128, help="harvest: a round")
    parser.add_argument("--sequences", type=int, default=32, help="harvest: in transformers' batch")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", metavar="FILE", help="writes what was measured")
    options = parser.parse_args()
    try:
        import torch

        torch.set_num_threads(os.cpu_count() if options.threads == 0 else options.threads)
        measured = {"train": train, "quality": quality, "harvest": harvest}[options.what]
        results = measured(options)
    except ImportError as missing:
        sys.exit(f"{missing}; README.md says what to install")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
