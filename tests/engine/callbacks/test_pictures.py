"""File names of sheets of pictures."""

from afclip_lightning.engine.callbacks.pictures import _file_name


def test_names_of_sheets() -> None:
    taken: set[str] = set()
    assert _file_name("mvtec_metal nut", taken) == "mvtec_metal nut"
    assert _file_name("set_a/b", taken) == "set_a_b"
    assert _file_name("set_a_b", taken) == "set_a_b-2"  # that of another category
    assert _file_name("set_A_b", taken) == "set_A_b-3"  # for disks that know no case
    assert _file_name("pr\u00fcfung", taken) == "pr\u00fcfung"
    assert _file_name("pru\u0308fung", taken) == "pru\u0308fung-2"
    assert _file_name("../../x\\y:z\n\x00", taken) == ".._.._x_y_z__"
    long = [_file_name(f"set_{300 * 'ü'}{i}", taken) for i in range(3)]
    assert len(set(long)) == 3
    assert all(len(name.encode()) < 130 for name in long)
    assert _file_name("set_\udcff", taken) == "set_?"
