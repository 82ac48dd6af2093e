#!/usr/bin/env python3
"""Does Hugging Face's transformers load a model folder that saesweep wrote, and compute the same?

    check_with_transformers.py FOLDER [--program build/release/bin/write_logits] [--games 400]

FOLDER holds config.json and model.safetensors of a model trained on board games (4x4, 6x6, 8x8).
Games of uniform play are made here, by a board of its own, and read by GPT2LMHeadModel:
  - with --program, its logits are compared with ours, position by position (limit 1e-3);
  - if FOLDER has training.json, the cross entropy of these games is compared with the one recorded
    there for held-out games (limit .03 nats, what 400 games can tell), and so is the share of
    illegal top-1 moves (limit .02).
Exit code 0 if all that could be compared agrees, 1 if not, 2 if the folder cannot be loaded.

Needs torch and transformers, which nothing else in this project does:
    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers

Seen with torch 2.11.0 and transformers 5.24.0, on the models that ship:
    tests/scripts/check_with_transformers.py sweeps/models/othello-6x6 \\
        --program build/release/bin/write_logits
    largest difference of 409200 logits: 0.00e+00 (of values up to 27.9)
    400 games, 12382 targets: cross entropy 1.5836, optimum 1.5405, illegal top-1 0.47%
    training.json: cross entropy 1.5788, optimum 1.5350, illegal top-1 0.54%
Not a bit differs because both end in the same kernels; with gelu_new and a tied head 4.8e-07 do.
"""

import argparse
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile


def uniform_game(size, rng):
    """Moves (squares) of one game and the number of legal moves before each."""
    board = {}
    low, high = size // 2 - 1, size // 2
    board[low, low] = board[high, high] = -1
    board[low, high] = board[high, low] = 1
    directions = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]

    def turned(row, column, player):
        all_turned = []
        for down, right in directions:
            line, r, c = [], row + down, column + right
            while board.get((r, c)) == -player:
                line.append((r, c))
                r, c = r + down, c + right
            if line and board.get((r, c)) == player:
                all_turned += line
        return all_turned

    def legal(player):
        squares = [(r, c) for r in range(size) for c in range(size) if (r, c) not in board]
        return [square for square in squares if turned(*square, player)]

    player, moves, choices = 1, [], []
    while True:
        options = legal(player)
        if not options:
            player = -player
            options = legal(player)
            if not options:
                return moves, choices
        row, column = rng.choice(options)
        for square in turned(row, column, player):
            board[square] = player
        board[row, column] = player
        moves.append(size * row + column)
        choices.append({size * r + c for r, c in options})
        player = -player


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--program", type=pathlib.Path, help="write_logits of the build tree")
    parser.add_argument("--games", type=int, default=400)
    arguments = parser.parse_args()

    import torch
    from transformers import GPT2LMHeadModel

    try:
        model, report = GPT2LMHeadModel.from_pretrained(
            arguments.folder, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # whatever the library throws is the answer
        print(f"transformers cannot load {arguments.folder}: {error}")
        return 2
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            print(f"{kind}: {sorted(report[kind])}")
            return 2
    model.eval()
    vocabulary, context = model.config.vocab_size, model.config.n_positions
    size = math.isqrt(vocabulary + 3)
    if size * size - 3 != vocabulary:
        print(f"a vocabulary of {vocabulary} is no board's")
        return 2
    centre = {size * r + c for r in (size // 2 - 1, size // 2) for c in (size // 2 - 1, size // 2)}
    squares = [square for square in range(size * size) if square not in centre]
    token = {square: number for number, square in enumerate(squares, start=1)}

    rng = random.Random(0)
    games = [uniform_game(size, rng) for _ in range(arguments.games)]
    inputs = torch.zeros(len(games), context, dtype=torch.long)
    for row, (moves, _) in enumerate(games):
        known = [token[move] for move in moves[:-1]][:context]
        inputs[row, : len(known)] = torch.tensor(known)
    with torch.no_grad():
        logits = model(inputs).logits

    agrees = True
    if arguments.program:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(inputs.tolist(), file)
            file.flush()
            command = [str(arguments.program), str(arguments.folder), file.name]
            written = subprocess.run(command, capture_output=True, check=True, text=True)
        ours = torch.tensor(json.loads(written.stdout)["logits"])
        difference = (ours - logits).abs().max().item()
        print(f"largest difference of {logits.numel()} logits: {difference:.2e}"
              f" (of values up to {logits.abs().max().item():.1f})")
        agrees &= difference < 1e-3

    log_probability = torch.log_softmax(logits.double(), -1)
    entropy = optimum = illegal = count = 0
    for row, (moves, choices) in enumerate(games):
        for position in range(min(len(moves) - 1, context)):
            entropy -= log_probability[row, position, token[moves[position + 1]]].item()
            optimum += math.log(len(choices[position + 1]))
            guess = int(logits[row, position].argmax())
            illegal += guess == 0 or squares[guess - 1] not in choices[position + 1]
            count += 1
    entropy, optimum, illegal = entropy / count, optimum / count, illegal / count
    print(f"{len(games)} games, {count} targets: cross entropy {entropy:.4f}, optimum {optimum:.4f},"
          f" illegal top-1 {illegal:.2%}")

    recorded = arguments.folder / "training.json"
    if recorded.exists():
        training = json.loads(recorded.read_text())
        print(f"training.json: cross entropy {training['cross_entropy']:.4f}, optimum"
              f" {training['optimum']:.4f}, illegal top-1 {training['illegal_rate']:.2%}")
        # Above the optimum, so that what these games happen to be matters less.
        excess = (entropy - optimum) - (training["cross_entropy"] - training["optimum"])
        agrees &= abs(excess) < 0.03
        agrees &= abs(illegal - training["illegal_rate"]) < 0.02
    print("agrees" if agrees else "DIFFERS")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
