"""Which runs the automations take for lost, by the events that Prefect's own triggers wait for."""

import pytest

from flows.automations import UNSTARTED_AFTER, recovery


@pytest.mark.parametrize("state", ["Suspended", "Paused", "Cancelling", "Completed"])
def test_a_run_that_waits_for_a_person_or_has_ended_is_not_lost(state: str):
    from prefect.server.events.schemas.automations import EventTrigger

    lost, unstarted, *_ = recovery()
    for automation in (lost, unstarted):
        trigger = EventTrigger.model_validate(automation.trigger.model_dump())
        assert trigger.expects(f"prefect.flow-run.{state}"), automation.name
        assert not trigger.starts_after(f"prefect.flow-run.{state}"), automation.name


def test_the_message_of_a_run_that_never_started_says_how_long_it_had():
    _, unstarted, *_ = recovery()
    assert unstarted.actions[0].message == "Its worker did not start it within 1800 s."
    assert unstarted.trigger.within == UNSTARTED_AFTER
