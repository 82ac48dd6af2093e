#!/usr/bin/env python3
"""saesweep beside the libraries people use, on this machine: training beside dictionary_learning,
what training arrives at, harvesting beside transformers. See README.md for what is installed how,
and what is compared.

    peers.py train [--n 1 4 16] [--arch topk batchtopk standard jumprelu] [--precision fp32 bf16]
    peers.py quality [--on planted othello] [--arch ...] [--precision ...] [--seeds 3]
    peers.py harvest [--precision fp32 bf16]
"""

import argparse
import importlib.util
import json
import os
import pathlib
import random
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

QUALITY = {"rows": 1 << 18, "d_sae": 512, "batch": 512, "steps": 4000, "lr": 1e-3, "warmup": 200,
           "sparsity_warmup": 1000, "decay": 3200, "dead_after": 200_000}
QUALITY_KEYS = {"topk": {"k": 16}, "batchtopk": {"k": 16}, "standard": {"l1": 0.1},
                "jumprelu": {"l0_target": 16}}


class Planted:
    """Sums of about 8 of 256 planted directions in 64 dimensions, of mean square norm 1."""

    def __init__(self):
        rows = self.sums(QUALITY["rows"], 1)
        self.norm = rows.square().sum(1).mean().sqrt()
        self.rows, self.held_out = rows / self.norm, self.sums(1 << 14, 2) / self.norm

    @staticmethod
    def sums(count, seed):
        import torch

        planted = torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(torch.randn(256, 64, generator=planted), dim=1)
        drawn = torch.Generator().manual_seed(seed)
        active = torch.rand(count, 256, generator=drawn) < 8 / 256
        return (active * (0.5 + torch.rand(count, 256, generator=drawn))) @ directions

    def loss_recovered(self, _reconstruct):
        return None  # there is no model


class Othello:
    """blocks.2.hook_resid_post of sweeps/models/othello-6x6, of mean square norm 1."""

    def __init__(self):
        import torch
        from transformers import GPT2LMHeadModel

        self.model = GPT2LMHeadModel.from_pretrained(ROOT / "sweeps/models/othello-6x6").eval()
        script = importlib.util.spec_from_file_location(
            "games", ROOT / "tests/scripts/check_with_transformers.py")
        games = importlib.util.module_from_spec(script)
        script.loader.exec_module(games)
        self.chance, self.game = random.Random(0), games.uniform_game
        harvested, count = [], 0
        while count < QUALITY["rows"]:
            inputs, targets = self.games(512)
            harvested.append(self.run(inputs)[1][targets >= 0])
            count += len(harvested[-1])
        rows = torch.cat(harvested)[: QUALITY["rows"]]
        self.norm = rows.square().sum(1).mean().sqrt()
        self.inputs, self.targets = self.games(1024)
        self.clean, self.x = self.run(self.inputs)
        self.zero = self.run(self.inputs, torch.zeros_like(self.x))[0]
        self.rows, self.held_out = rows / self.norm, self.x[self.targets >= 0] / self.norm

    def games(self, count):
        """Moves and, of each, the next; -100 where there is none."""
        import torch

        centre = (14, 15, 20, 21)
        token = {square: number for number, square in
                 enumerate((s for s in range(36) if s not in centre), start=1)}
        inputs = torch.zeros(count, 31, dtype=torch.long)
        targets = torch.full((count, 31), -100)
        for game in range(count):
            moves = torch.tensor([token[move] for move in self.game(6, self.chance)[0]])
            inputs[game, : len(moves) - 1] = moves[:-1]
            targets[game, : len(moves) - 1] = moves[1:]
        return inputs, targets

    def run(self, inputs, replaced=None):
        """Logits, and what the hook had before it was replaced."""
        import torch

        seen = []

        def hook(_block, _inputs, output):
            seen.append(output)
            return replaced

        handle = self.model.transformer.h[2].register_forward_hook(hook)
        with torch.no_grad():
            logits = self.model(inputs).logits
        handle.remove()
        return logits, seen[0]

    def loss_recovered(self, reconstruct):
        """As core.ce_loss_score: of the loss that zeros in place of x cost."""
        from torch.nn.functional import cross_entropy

        spliced = self.x.clone()
        spliced[self.targets >= 0] = reconstruct(self.held_out) * self.norm
        zero, with_sae, clean = (
            cross_entropy(logits.flatten(0, 1), self.targets.flatten()).item()
            for logits in (self.zero, self.run(self.inputs, spliced)[0], self.clean))
        return (zero - with_sae) / (zero - clean)


def score(data, encode, decode):
    rows, encoded = data.held_out, encode(data.held_out)
    residual = (rows - decode(encoded)).square().sum()
    total = (rows - rows.mean(0)).square().sum()
    return {"fve": float(1 - residual / total),
            "l0": float((encoded != 0).float().sum(1).mean()),
            "loss_recovered": data.loss_recovered(lambda x: decode(encode(x)))}


def quality_of_peer(trainers, arch, seed, data):
    import torch

    run, kind = QUALITY, trainers[arch][0]
    keys = {"l1_penalty" if key == "l1" else "target_l0" if key == "l0_target" else key: value
            for key, value in QUALITY_KEYS[arch].items()}
    if "k" not in keys:
        keys["sparsity_warmup_steps"] = run["sparsity_warmup"]
    torch.manual_seed(seed)  # JumpReluTrainer does not use the seed that it is given
    trainer = kind(
        steps=run["steps"], activation_dim=data.rows.shape[1], dict_size=run["d_sae"], layer=0,
        lm_name="none", device="cpu", seed=seed, lr=run["lr"], warmup_steps=run["warmup"],
        decay_start=run["decay"], **keys,
    )
    if "k" in keys:
        trainer.dead_feature_threshold = run["dead_after"]
    shuffled = torch.Generator().manual_seed(seed)
    step = 0
    while step < run["steps"]:
        for chosen in torch.randperm(len(data.rows), generator=shuffled).split(run["batch"]):
            if step == run["steps"]:
                break
            trainer.update(step, data.rows[chosen])
            step += 1
    how = {"topk": {"use_threshold": False}, "batchtopk": {"use_threshold": True}}.get(arch, {})
    with torch.no_grad():
        return score(data, lambda x: trainer.ae.encode(x, **how), trainer.ae.decode)


def quality_of_ours(folder, data):
    """As the README says that an exported SAE is read."""
    from safetensors.torch import load_file

    sae = load_file(folder / "sae.safetensors")
    config = json.loads((folder / "config.json").read_text())
    arch = config["architecture"]

    def encode(x):
        read = x if arch == "jumprelu" else x - sae["b_dec"]
        encoded = read @ sae["W_enc"].T + sae["b_enc"]
        if arch != "jumprelu":
            encoded = encoded.relu()
        if arch == "topk":
            kept = encoded.topk(config["parameters"]["k"], dim=1)
            return encoded.new_zeros(encoded.shape).scatter_(1, kept.indices, kept.values)
        return encoded * (encoded > sae["threshold"]) if "threshold" in sae else encoded

    return arch, score(data, encode, lambda f: f @ sae["W_dec"] + sae["b_dec"])


def train_ours(options, folder, precision, seed):
    """Folders of trials whose initialisation and order of rows are those of the seed."""
    run = QUALITY
    families = []
    for arch in options.arch:
        keys = dict(QUALITY_KEYS[arch], arch=arch)
        if "k" in keys:
            keys["dead_after_tokens"] = run["dead_after"]
        else:
            keys["sparsity_warmup_steps"] = run["sparsity_warmup"]
        families.append(keys)
    name = f"quality-{precision}-{seed}"
    sweep = {
        "name": name,
        "data": {"source": "activations", "path": str(folder / "rows.safetensors"), "tensor": "x"},
        "activations": {"tokens": run["rows"], "dtype": "fp32", "normalize": "none",
                        "holdout": "0%", "seed": seed},
        "train": {"tokens": run["steps"] * run["batch"], "batch": run["batch"],
                  "d_sae": run["d_sae"], "lr": run["lr"], "warmup_steps": run["warmup"],
                  "decay_start": run["decay"], "device": "cpu", "precision": precision,
                  "seed": seed},
        "trials": families,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(sweep))  # every JSON is YAML
    done = subprocess.run(
        [options.saesweep, "run", path, "--state", folder / "state", "--out", folder / name],
        capture_output=True, text=True,
    )
    if done.returncode != 0:
        sys.exit(f"saesweep run: {done.stderr or done.stdout}")
    return [trial.parent for trial in (folder / name).rglob("sae.safetensors")]


def quality(options):
    from safetensors.torch import save_file

    trainers = trainers_of_dictionary_learning()
    results = []
    for data in ({"planted": Planted, "othello": Othello}[name]() for name in options.on):
        found = {}
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            save_file({"x": data.rows.contiguous()}, folder / "rows.safetensors")
            for precision in options.precision:
                for seed in range(options.seeds):
                    for trial in train_ours(options, folder, precision, seed):
                        arch, scores = quality_of_ours(trial, data)
                        found.setdefault((arch, f"saesweep {precision}"), []).append(scores)
        for arch in options.arch:
            for seed in range(options.seeds):
                found.setdefault((arch, "dictionary_learning"), []).append(
                    quality_of_peer(trainers, arch, seed, data))
        print(f"{data.__doc__} {QUALITY}, {options.seeds} seeds; held-out rows that neither was "
              f"given: mean (least to most)")
        print(f"{'':<10} {'':<20} {'FVE':^24} {'L0':^24} {'loss recovered':^24}")
        for (arch, who), scores in sorted(found.items()):
            line = f"{arch:<10} {who:<20}"
            for what, digits in (("fve", 4), ("l0", 2), ("loss_recovered", 4)):
                of_seeds = [of_seed[what] for of_seed in scores]
                if None in of_seeds:
                    continue
                mean, least, most = statistics.mean(of_seeds), min(of_seeds), max(of_seeds)
                cell = f"{mean:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"
                line += f" {cell:^24}"
            print(line, flush=True)
            results.append({"on": data.__doc__, "arch": arch, "who": who, "scores": scores})
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
    parser.add_argument("--on", nargs="+", default=["planted", "othello"],
                        choices=["planted", "othello"], help="quality: rows")
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
