"""What refilling slots is worth in rollouts, and their share of an iteration: `python -m bench.rollouts RUN [WAVES]`.

RUN is a run of `posttrain ppo`. Its prompts are answered once with refilled slots and once in waves that wait for their
longest answer; its metrics give the share. CPU seconds of this process, so that a busy machine changes little.
"""

from __future__ import annotations

import sys
import time

from posttrain.app.assistant import load
from posttrain.app.run import Run
from posttrain.data.read import open_source
from posttrain.model.sample import generate


def main(name: str, waves: str = "6", slots: int = 64) -> None:
    run = Run(name)
    assistant = load(name)
    source = open_source(run.config["data"][0], objective="ppo")
    prompts = [assistant.renderer.prompt(source.row(i).messages) for i in range(min(len(source), slots * int(waves)))]
    options = {"max_new_tokens": run.config["max_new_tokens"], "stop_ids": assistant.renderer.stop_ids,
               "temperature": run.config["temperature"]}
    seconds = {}
    for _ in range(2):  # the first round warms up
        began = time.process_time()
        made = generate(assistant.model, prompts, batch_size=slots, **options)
        seconds["refilled"] = time.process_time() - began
        began = time.process_time()
        for at in range(0, len(prompts), slots):
            generate(assistant.model, prompts[at:at + slots], batch_size=slots, keys=list(range(at, at + slots)),
                     **options)
        seconds["in waves"] = time.process_time() - began
    tokens = sum(len(g.ids) for g in made)
    for how, spent in seconds.items():
        print(f"{how}: {tokens} tokens in {spent:.2f} CPU s, {tokens / spent:,.0f} per CPU s")
    each = {line["rollout_seconds"]: line for line in run.metrics}  # one line of each collection
    share = sum(each) / sum(line["seconds"] for line in run.metrics)
    iteration = sum(line["seconds"] for line in run.metrics) / len(each)
    print(f"an iteration: {iteration:.2f} s, {share:.0%} of it in rollouts")
    slower = share * seconds["in waves"] / seconds["refilled"]
    print(f"in waves the rollouts would be {slower / (1 - share + slower):.0%} of it")


if __name__ == "__main__":
    main(*sys.argv[1:])
