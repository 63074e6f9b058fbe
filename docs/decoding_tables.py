"""Tables of losslessness, drafting and the engine's times."""

from typing import Any

from cells import interval, origin, section, table, with_interval

ARMS = ("hf-greedy", "hf-prompt-lookup", "plain")
"""What our answers with drafts are compared with."""

FIRST = "first token"
"""Work of the rows that are timed to the first token alone."""


def losslessness_table(measured: dict[str, Any]) -> str:
    """Return in which settings drafting changes no token, ours and transformers' prompt lookup."""
    ordered = sorted(measured["rows"], key=lambda row: str(row["row"]))
    lines = [[row[name] for name in ("row", "what", "ours", "peer")] for row in ordered]
    return table(["row", "setting", "ours", "prompt lookup"], lines) + origin(measured)


TREE_WAYS = ("masked", "paths")


def bf16_table(measured: dict[str, Any]) -> str:
    """Return how often drafts change a sequence, by dtype and way to draft."""
    lines = [
        [
            row["dtype"],
            row["way"],
            f"{row['changed']} of {row['sequences']}",
            f"{row['tokens'] / row['forward_passes']:.2f}",
            f"{1000 * row['changed'] / row['tokens_before_a_change']:.1f}",
        ]
        for row in measured["rows"]
    ]
    heads = ["dtype", "drafts copy", "sequences changed", "tokens per forward"]
    return table([*heads, "changes per 1,000 tokens"], lines) + origin(measured)


def bitwise_trees(measured: dict[str, Any]) -> str:
    """Return which nodes of trees had other bits than plain steps, and what steps take."""
    bits = [
        [row["dtype"], str(row["nodes"]), *(str(row["other_bits"][way]) for way in TREE_WAYS)]
        for row in measured["rows"]
        if "nodes" in row
    ]
    times = [
        [
            *(str(row[name]) for name in ("width", "bucket")),
            *(f"{row[f'{way}_ms']:.0f}" for way in TREE_WAYS),
            f"{row['ratio']:.2f}",
        ]
        for row in measured["rows"]
        if "ratio" in row
    ]
    of = next(row for row in measured["rows"] if "ratio" in row)
    return (
        table(["dtype", "nodes", "other bits, masked", "other bits, own paths"], bits)
        + f"\nSteps of {of['shape']} in float32 behind {of['context']} tokens, "
        + f"{of['threads']} threads:\n\n"
        + table(["width", "bucket", "masked, ms", "own paths, ms", "ratio"], times)
        + origin(measured)
    )


def drafting_nodes(measured: dict[str, Any]) -> str:
    """Return tokens per forward pass by node budget."""
    found, origin = section(measured, "tokens_per_forward")
    ours = list(next(iter(found.values())))
    lines = [
        [budget, *(with_interval(row[name]) for name in ours)] for budget, row in found.items()
    ]
    return table(["draft", *(f"`{name}`" for name in ours)], lines) + origin


def drafting_speed(measured: dict[str, Any]) -> str:
    """Return S(c) of ours and of the peers, tuned, and of the same settings on other sets."""
    ours, origin = section(measured, "speed_ups")
    peers, _ = section(measured, "peers")
    lines = []
    for cost, found in peers.items():
        rows = {**{f"**{name}**": row for name, row in ours[cost].items()}, **found}
        best = {part: max(row[part] for row in found.values()) for part in ("dev", "test")}
        lines += [
            [
                cost,
                name.replace(":", ": ").replace(",", ", "),
                *(f"{row[part]:.3f} ({row[part] / best[part] - 1:+.1%})" for part in best),
            ]
            for name, row in rows.items()
        ]
    heads = ["c", "drafter", "S(c), tuned sets", "S(c), test sets"]
    return table(heads, lines) + origin


def drafting_sets(measured: dict[str, Any]) -> str:
    """Return S(c) of ours on every set, the controls included."""
    found, origin = section(measured, "speed_ups")
    controls, _ = section(measured, "controls")
    rows = {**found["sets"], **{name: row["llma-rag"] for name, row in controls.items()}}
    costs = list(next(iter(rows.values())))
    lines = [[name, *(f"{row[cost]:.3f}" for cost in costs)] for name, row in rows.items()]
    return table(["set", *(f"S({cost})" for cost in costs)], lines) + origin


def drafting_answers(measured: dict[str, Any]) -> str:
    """Return tokens per forward pass with earlier answers."""
    found, origin = section(measured, "answer_store")
    lines = [[name, str(row["answers"]), with_interval(row)] for name, row in found.items()]
    return table(["earlier answers", "answers", "tokens per forward"], lines) + origin


def drafting_time(measured: dict[str, Any]) -> str:
    """Return the time of a drafting step with 64k tokens of context."""
    found, origin = section(measured, "step_time")
    lines = [
        [name, *(f"{row[key]:.0f}" for key in ("step_us_p50", "step_us_p99", "build_ms"))]
        for name, row in found.items()
    ]
    return table(["drafter", "step p50, us", "step p99, us", "build, ms"], lines) + origin


def drafting_hostile(measured: dict[str, Any]) -> str:
    """Return what misleading references cost."""
    found, origin = section(measured, "hostile")
    lines = [[name.replace("_", " "), str(value)] for name, value in found.items()]
    return table(["hostile references, c = 0.05", ""], lines) + origin


def engine_table(measured: dict[str, Any]) -> str:
    """Return times of every arm, after the first token, with ratios to two of them."""
    lines = [
        [
            row["shape"],
            row["dtype"],
            row["work"],
            row["arm"],
            f"{row['ms_per_token']:.1f}",
            f"{row['ttft_ms']:.0f}",
            f"{row['tokens_per_forward']:.2f}",
            f"{row['bandwidth']:.0%}" if "bandwidth" in row else "",
            str(row.get("prompts", "")),
            *(interval(row["ratio"].get(other)) for other in ("hf-greedy", "plain")),
            interval(row["answer_ratio"].get("hf-greedy")),
        ]
        for row in measured["rows"]
        if row["work"] != FIRST
    ]
    heads = "shape|dtype|work|arm|ms per token|ms to first|tokens per forward|bandwidth|prompts"
    heads += "|`generate`|plain|whole answer, `generate`"
    run = measured["rows"][0]["run"]
    rate = run.get("memory_gb_per_s") or run["copy_gb_per_s"]
    bandwidth = (
        f" Bandwidth is what a pass must read of weights, keys and values, over its time, as a "
        f"share of the {rate:.0f} GB/s that the memory was seen to move."
    )
    return table(heads.split("|"), lines) + _engine_notes(measured, bandwidth)


def engine_steps(measured: dict[str, Any]) -> str:
    """Return how steps run on a GPU, one line per model."""
    runs = {(row["shape"], row["dtype"]): row["run"] for row in measured["rows"]}
    lines = [
        [
            shape,
            dtype,
            run["device"],
            f"{run['step']}, {run['width']} rows",
            "yes" if run["bitwise"] else "no",
            f"{run['step_ms']:.2f}",
            f"{run['decoder_s']:.0f}",
            f"{run['capture_s']:.2f}",
            f"{run['kernel_error']:.1e}",
        ]
        for (shape, dtype), run in runs.items()
    ]
    heads = "shape|dtype|device|step|same bits with drafts|ms behind 1,024 tokens|s to load"
    heads += "|s to capture|error of attention"
    return table(heads.split("|"), lines) + origin(measured)


def engine_gpu(measured: dict[str, Any]) -> str:
    """Return what drafts bring on a GPU, a sentence per model."""
    rows = {(row["shape"], row["work"], row["arm"]): row for row in measured["rows"]}
    told = []
    for (shape, work, arm), row in rows.items():
        if (work, arm) == ("recorded", "llma"):
            plain, run = rows[shape, work, "plain"], row["run"]
            told.append(
                f"On an {run['device']}, random weights of {shape} in {run['dtype']} take "
                f"{plain['ms_per_token']:.2f} ms per token without drafts and "
                f"{row['ms_per_token']:.2f} ms with them: {interval(row['ratio']['plain'])} times "
                f"quicker, whole answers {interval(row['answer_ratio']['plain'])} times, over "
                f"{row['prompts']} recorded answers (commit {measured['commit']})."
            )
    return " ".join(told) + "\n"


def engine_first_token(measured: dict[str, Any]) -> str:
    """Return by how much references delay the first token of our own engine."""
    lines = []
    for row in measured["rows"]:
        if row["work"] == FIRST and row["arm"] == "llma":
            more = row["ttft_more_ms"]["plain"]
            without = row["ttft_ms"] - more["median"]
            lines.append(
                [
                    row["shape"],
                    row["dtype"],
                    str(row["prompts"]),
                    f"{row['ttft_ms']:.0f}",
                    f"{more['median']:+.1f} [{more['low']:+.1f}, {more['high']:+.1f}]",
                    f"{0.02 * without + 5:.0f}",
                ]
            )
    if not lines:
        return "*Not measured yet.*\n"
    heads = "shape|dtype|prompts|ms to first token|of that by references, ms|2 % + 5 ms"
    return table(heads.split("|"), lines) + origin(measured)


def engine_summary(measured: dict[str, Any]) -> str:
    """Return how many times quicker than each arm answers with drafts come, a line per dtype."""
    found: dict[str, dict[str, Any]] = {}
    for row in measured["rows"]:
        if row["arm"] == "llma":
            found.setdefault(row["dtype"], {})[row["work"]] = row
    lines = [
        [
            dtype,
            f"{works['recorded']['tokens_per_forward']:.2f}",
            *(interval(works["recorded"]["ratio"].get(other)) for other in ARMS),
            *(interval(works[work]["ratio"].get("plain")) for work in ("no-overlap", "misleading")),
            interval(works["recorded"]["answer_ratio"].get("hf-greedy")),
        ]
        for dtype, works in found.items()
    ]
    heads = (
        "dtype|tokens per forward|`generate`|its prompt lookup|our plain decoding"
        "|the same, `no-overlap`|the same, `misleading`|whole answer, `generate`"
    )
    return table(heads.split("|"), lines) + _engine_notes(measured)


def _engine_notes(measured: dict[str, Any], more: str = "") -> str:
    run = measured["rows"][0]["run"]
    return (
        f"\n{run['threads']} threads, at most {run['prompts']} prompts of up to {run['tokens']} "
        "tokens. Times are those after the first token, except in the last column; the last "
        "columns say how many times quicker than these arms (median over prompts, 95 % interval; "
        "no interval: one prompt)."
        f"{more}\n" + origin(measured)
    )


def recycling_table(measured: dict[str, Any]) -> str:
    """Return what recycling yields with the models' own choices, one line per way."""
    lines = [
        [
            row["model"],
            row["drafts"],
            row["way"],
            str(row["tokens"]),
            str(row["forwards"]),
            f"{row['tokens_per_forward']:.2f}",
            f"{row['identical']} of {row['answers']}",
        ]
        for row in measured["rows"]
    ]
    heads = "model|drafts|way|tokens|forward passes|tokens per forward|identical"
    return table(heads.split("|"), lines) + origin(measured)
