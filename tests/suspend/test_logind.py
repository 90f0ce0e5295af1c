"""logind and systemd as they are asked, on a real bus."""

import pytest
from jeepney import DBusAddress, HeaderFields, new_signal

from memscaler.sleep import alarm
from memscaler.sleep.logind import SYSTEMD, Bus, BusError, Inhibitor, Logind, NoBus, Session, asleep_s
from tests.suspend.bus import a_box, eventually


@pytest.fixture
def box(tmp_path, monkeypatch):
    with a_box(tmp_path) as found:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
        yield found


@pytest.fixture
def bus(box):
    assert box.address
    found = Bus()
    yield found
    found.close()


def test_who_is_there(box, bus):
    """Inhibitors and sessions, without one that has ended while they were asked for."""
    box.set(
        inhibitors=[["sleep:idle", "apt", "upgrading", "block", 0, 77]],
        sessions={
            "3": {"user": "eve", "Class": "user", "State": "online", "TTY": "pts/0", "Service": "sshd", "Remote": True},
            "4": {"user": "adam", "gone": True},
        },
    )
    logind = Logind(bus)
    assert logind.can_suspend() == "yes"
    assert logind.inhibitors() == (Inhibitor("sleep:idle", "apt", "upgrading", "block", 77),)
    assert logind.sessions() == (Session("3", "eve", "user", "online", "sshd", "pts/0", is_remote=True),)


def test_refusal_has_logind_s_words(box, bus):
    """And its name, by which programs know it."""
    box.set(inhibitors=[["sleep", "apt", "upgrading", "block", 1000, 77]])
    with pytest.raises(BusError, match="inhibited by") as caught:
        Logind(bus).suspend(force=False)
    assert caught.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    Logind(bus).suspend(force=True)


def test_signals_of_logind_only(bus):
    """Anybody may send a signal that looks like its own."""
    logind = Logind(bus)
    logind.listen()
    stranger = Bus()
    stranger.connect()
    lie = new_signal(
        DBusAddress("/org/freedesktop/login1", None, "org.freedesktop.login1.Manager"), "PrepareForSleep", "b", (False,)
    )
    assert stranger._connection
    stranger._connection.send(lie)
    lie.header.fields[HeaderFields.destination] = (
        bus._connection.unique_name
    )  # to us in person: no rule of ours is needed for that
    stranger._connection.send(lie)
    stranger.owner("org.freedesktop.login1")  # the bus has dealt with what was sent before
    assert list(logind.going()) == []
    logind.suspend(force=False)
    heard = []
    eventually(lambda: heard.extend(logind.going()) or False in heard)
    assert heard == [True, False]
    stranger.close()


def test_bus_that_went_and_came_back(box, bus):
    """The next call connects again, and signals are heard again."""
    logind = Logind(bus)
    logind.listen()
    box.stop()
    with pytest.raises(NoBus):
        eventually(lambda: list(logind.going()) or logind.can_suspend())
    assert bus.fd() is None
    box.start()
    assert logind.can_suspend() == "yes"
    logind.suspend(force=False)
    heard = []
    eventually(lambda: heard.extend(logind.going()) or False in heard)


def test_alarm_replaces_an_older_one(box, bus):
    """Although systemd takes its time to forget a unit."""
    alarm.set_alarm(bus, 4102444800.0)
    alarm.set_alarm(bus, 4102448400.0)
    timers = [entry for entry in box.log() if entry[0] == "timer"]
    assert [entry[2] for entry in timers[-2:]][-1] == [["OnCalendar", "2100-01-01 01:00:00 UTC"]]
    alarm.cancel_alarm(bus)
    eventually(lambda: alarm.cancel_alarm(bus) is None)


def test_foreign_refusal_is_not_swallowed(bus):
    """Only "there is no such unit" is no error when an alarm is cancelled."""
    with pytest.raises(BusError):
        bus.call(SYSTEMD, "NoSuchMethod")


def test_this_machine_has_slept_for_some_time():
    """Two clocks of the kernel."""
    assert asleep_s() > -0.1
