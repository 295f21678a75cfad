from servicekit.telemetry.repeats import _MAX_FAILURES, Repeats


def test_a_failure_is_new_once_in_a_window_and_then_counted() -> None:
    repeats = Repeats(60.0)
    assert repeats.is_new("full", 0.0)
    assert [repeats.is_new("full", at) for at in (1.0, 2.0, 59.9)] == [False] * 3
    assert repeats.is_new("another", 3.0)
    assert repeats.over(59.9) == []
    assert repeats.over(60.0) == [("full", 3)]
    assert repeats.over(60.0) == []
    assert repeats.is_new("full", 60.0)


def test_what_did_not_come_again_is_not_told_again() -> None:
    repeats = Repeats(60.0)
    assert repeats.is_new("once", 0.0)
    assert repeats.over(1e9) == []


def test_what_is_remembered_is_bounded() -> None:
    repeats = Repeats(60.0)
    for number in range(10 * _MAX_FAILURES):
        assert repeats.is_new(number, 0.0)
    assert len(repeats._reported) == _MAX_FAILURES
    assert repeats.is_new("more than is remembered", 0.0)
    assert repeats.is_new("more than is remembered", 0.0)
