from mla_med.console import SAY_S, say_steps


def test_without_a_terminal_each_step_is_a_line_and_a_counted_one_once_a_minute(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mla_med.console.time.monotonic", lambda: now[0])
    with say_steps("weighing") as say:
        for n in range(1, 151):
            now[0] += SAY_S / 50
            say(f"teaching: step {n} of 150")
        say("calibrating")
    assert capsys.readouterr().err.splitlines() == [
        "weighing",
        "teaching: step 1 of 150",
        "teaching: step 51 of 150",
        "teaching: step 101 of 150",
        "calibrating",
    ]
