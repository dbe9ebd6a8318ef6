"""A fleet of six pools under 16 GPUs on a real API server, with the two shapes of manifests, with and without adapters."""

from __future__ import annotations

import pytest

from tests.kube.conftest import Start
from tests.kube.manifests import Shape


@pytest.mark.parametrize("adapters", [True, False], ids=["adapters", "no adapters"])
@pytest.mark.parametrize("shape", ["v1alpha1", "v1beta1"])
def test_demand_moves_gpus_between_groups_within_the_budget(start: Start, shape: Shape, adapters: bool) -> None:
    play = start(shape=shape, adapters=adapters)
    play.want(chat_prefill=3, chat_decode=3, code_prefill=1, code_decode=1, docs_prefill=1, docs_decode=1)
    play.until_quiet()
    assert play.ordered() == play.alive()
    assert play.ordered() == {
        "chat-prefill": 3,
        "chat-decode": 3,
        "code-prefill": 1,
        "code-decode": 1,
        "docs-prefill": 1,
        "docs-decode": 1,
    }

    play.want(chat_prefill=1, chat_decode=1, code_prefill=3, code_decode=3)
    rounds = play.until_quiet()
    moved = play.ordered()
    assert moved["code-prefill"] == moved["code-decode"] == 3 and moved["chat-prefill"] == 1
    assert play.alive() == moved and play.gpus() <= 16
    assert rounds <= 12
    assert play.violations == []
    charged = [done.charged_gpus["h100"] for done in play.leader.rounds]
    assert max(charged) <= 16

    before = dict(play.leader.api.calls)
    versions = play.leader.deployments.versions(play.namespace)
    play.rounds(3)
    calls = {verb: number - before.get(verb, 0) for verb, number in play.leader.api.calls.items()}
    assert {verb: number for verb, number in calls.items() if number} == {"update": 3}, "the lease's, one a round"
    assert play.leader.deployments.versions(play.namespace) == versions, "nothing is written when nothing changes"


def test_two_components_of_a_dgd_change_in_one_patch(start: Start) -> None:
    play = start(adapters=False)
    play.want(chat_prefill=2, chat_decode=2, code_prefill=1, code_decode=1, docs_prefill=1, docs_decode=1)
    before = dict(play.leader.api.calls)
    generation = play.generation("chat-main")
    done = play.round()
    assert {type(item.step).__name__ for item in done.outcomes if item.applied} == {"Grow"}
    assert play.ordered()["chat-prefill"] == play.ordered()["chat-decode"] == 2
    assert play.leader.api.calls["patch"] - before.get("patch", 0) == 1
    assert play.generation("chat-main") == generation + 1
