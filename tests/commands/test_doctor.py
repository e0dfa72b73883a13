"""`fashionbert doctor` on a driver that is too old for the CUDA runtime in our library, where torch works."""

from __future__ import annotations

import ctypes

import pytest

from fashionbert_fast.commands import doctor

BUILT = "compiled by nvcc 13.0.88 for 80-real, 90-real"


@pytest.mark.parametrize(
    ("built", "driver", "said"),
    [
        (BUILT, (12, 4), "TOO OLD: serves CUDA 12.4, the operators were compiled with 13.0; update the driver"),
        (BUILT, (13, 0), "serves CUDA 13.0, enough for the operators' 13.0"),
        (BUILT.replace("13.0", "13.2"), (13, 0), "enough for the operators' 13.2"),  # minor versions go together
        (BUILT, None, "no NVIDIA driver"),
        ("skipped: no nvcc found", (12, 4), "were not compiled"),
    ],
)
def test_the_driver_is_held_against_the_build(built, driver, said):
    assert said in doctor.driver_fit(built, driver)


def test_the_drivers_own_number_is_read(monkeypatch):
    class Driver:
        @staticmethod
        def cuDriverGetVersion(pointer):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = 12040
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver)
    assert doctor.driver_cuda() == (12, 4)
    monkeypatch.setattr(Driver, "cuDriverGetVersion", staticmethod(lambda pointer: 3))
    assert doctor.driver_cuda() is None
