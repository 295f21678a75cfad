from inference_service.idempotency.lease_watch import LeaseWatch

KEY, OTHER = b"k", b"o"
ONE, TWO = (b"owner", 1.0), (b"owner", 2.0)


def test_a_claim_is_over_once_it_was_seen_unchanged_for_a_lease() -> None:
    watch = LeaseWatch(5.0)
    assert [watch.is_over(KEY, ONE, now) for now in (100.0, 104.9, 105.0)] == [False, False, True]


def test_a_renewal_or_another_owner_begins_a_new_lease() -> None:
    watch = LeaseWatch(5.0)
    for version in (ONE, TWO, (b"heir", 2.0)):
        assert not watch.is_over(KEY, version, 100.0)
        assert watch.is_over(KEY, version, 105.0)


def test_keys_have_leases_of_their_own() -> None:
    watch = LeaseWatch(5.0)
    watch.is_over(KEY, ONE, 100.0)
    assert not watch.is_over(OTHER, ONE, 105.0)


def test_a_look_counts_as_seeing_and_finds_what_is_abandoned() -> None:
    watch = LeaseWatch(5.0)
    assert watch.look([(KEY, ONE), (OTHER, ONE)], 100.0, abandoned_after=60.0) == []
    assert watch.is_over(KEY, ONE, 105.0)
    assert watch.look([(KEY, ONE), (OTHER, TWO)], 160.0, abandoned_after=60.0) == [(KEY, ONE)]


def test_what_is_no_longer_pending_is_forgotten() -> None:
    watch = LeaseWatch(5.0)
    watch.is_over(KEY, ONE, 100.0)
    watch.look([], 101.0, abandoned_after=60.0)
    assert not watch.is_over(KEY, ONE, 105.0)
    assert len(watch._seen) == 1
