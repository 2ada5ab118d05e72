"""How labels stand in files of another program, and what is usual in each format."""

from dataclasses import dataclass

from schnetpack_softadapt.data.formats.conventions import (
    ENERGY_UNITS,
    LENGTH_UNITS,
    STRESS_UNITS,
    stress_order,
    unit_factor,
)

__all__ = ["AUTO", "FORMAT_DEFAULTS", "NONE", "ImportOptions", "LabelUnits"]

AUTO = "auto"
NONE = "none"  # as the name of a label: leave it out

#: what holds in a format unless told otherwise (fields of `LabelUnits`)
FORMAT_DEFAULTS: dict[str, dict] = {
    "ase": {},  # ASE's readers convert
    "runner": {"energy_unit": "Ha", "length_unit": "Bohr"},
    "mlearn": {"stress_unit": "kbar", "stress_sign": -1, "stress_order": "lammps"},
    "fitsnap": {"stress_unit": "bar", "stress_sign": -1},
}


@dataclass(frozen=True)
class LabelUnits:
    """Units, sign and order of the labels in a file, and the factors that convert them.

    Attributes:
        energy_unit, length_unit, forces_unit, stress_unit: as in `conventions`; forces and stress
            follow from energy and length when None.
        stress_sign: -1 if positive means compression.
        stress_order: order of the stress where it is given as six numbers.

    Raises:
        ValueError: unknown unit, sign or order.
    """

    energy_unit: str = "eV"
    length_unit: str = "Ang"
    forces_unit: str | None = None
    stress_unit: str | None = None
    stress_sign: int = 1
    stress_order: str = "voigt"

    def __post_init__(self):
        if self.stress_sign not in (-1, 1):
            raise ValueError(f"the sign of the stress is +1 or -1, not {self.stress_sign}")
        for name in ("energy_factor", "length_factor", "forces_factor", "stress_factor"):
            getattr(self, name)
        stress_order(self.stress_order)

    @property
    def energy_factor(self) -> float:
        """eV per unit of energy."""
        return unit_factor(self.energy_unit, ENERGY_UNITS, "energy")

    @property
    def length_factor(self) -> float:
        """Ang per unit of length."""
        return unit_factor(self.length_unit, LENGTH_UNITS, "length")

    @property
    def forces_factor(self) -> float:
        """eV/Ang per unit of force."""
        if self.forces_unit is None:
            return self.energy_factor / self.length_factor
        energy, _, length = self.forces_unit.rpartition("/")
        return unit_factor(energy, ENERGY_UNITS, "force's energy") / unit_factor(
            length, LENGTH_UNITS, "force's length"
        )

    @property
    def stress_factor(self) -> float:
        """eV/Ang^3 per unit of stress, negative if positive numbers mean compression."""
        if self.stress_unit is None:
            return self.stress_sign * self.energy_factor / self.length_factor**3
        return self.stress_sign * unit_factor(self.stress_unit, STRESS_UNITS, "stress")

    @property
    def stress_components(self) -> tuple[str, ...]:
        """Component of each of the six numbers of the stress."""
        return stress_order(self.stress_order)

    def __str__(self) -> str:
        return (
            f"energy in {self.energy_unit}, length in {self.length_unit}, stress in"
            f" {self.stress_unit or 'the same units'}, positive ="
            f" {'tension' if self.stress_sign > 0 else 'compression'}"
        )


@dataclass
class ImportOptions:
    """What the user says about the files; None: as is usual in their format.

    Attributes:
        format: "auto", or a name in `FORMAT_DEFAULTS`; "ase" reads everything that `ase.io` knows.
        energy_key, forces_key, stress_key: names of the labels; None for the usual ones, "none" to
            leave a label out. With ASE they are names in the calculator, `info` or `arrays`, and
            the usual energy is `energy`, but for VASP's own files `free_energy`, which their forces
            derive from. A stress of a name such as `virial` is -volume * stress, an energy.
        energy_unit, length_unit, forces_unit, stress_unit, stress_sign, stress_order: as in
            `LabelUnits`.
        group_key: entry that names the group; None: `group` or `config_type`, else the file
            or its folder.
        split_keys: entries that must agree only within one subset of a split.
    """

    format: str = AUTO
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    forces_unit: str | None = None
    stress_unit: str | None = None
    stress_sign: int | None = None
    stress_order: str | None = None
    group_key: str | None = None
    split_keys: tuple[str, ...] = ()

    def __post_init__(self):
        if self.format != AUTO and self.format not in FORMAT_DEFAULTS:
            names = ", ".join([AUTO, *FORMAT_DEFAULTS])
            raise ValueError(f"unknown format {self.format!r}; choose from {names}")
        self.units("ase")  # a misspelt unit is an error before any file is read

    def units(self, format: str, **in_file) -> LabelUnits:
        """Units of a file: what the user gave, else what the file says, else what is usual.

        Args:
            format: name in `FORMAT_DEFAULTS`.
            in_file: fields of `LabelUnits` as the file states them; None where it does not.
        """
        names = LabelUnits.__dataclass_fields__
        given = {name: getattr(self, name) for name in names}
        stated = {name: value for name, value in in_file.items() if value is not None}
        given = {name: value for name, value in given.items() if value is not None}
        return LabelUnits(**{**FORMAT_DEFAULTS[format], **stated, **given})

    def refuse_keys(self, format: str) -> None:
        """Raise ValueError if a label is to have another name where the names are fixed."""
        for name in ("energy", "forces", "stress"):
            key = getattr(self, f"{name}_key")
            if key is not None and (key != NONE or name == "energy"):
                raise ValueError(
                    f"--{name}-key {key}: the format {format} has fixed names;"
                    " only 'none' is possible, for forces and stress"
                )

    def entries(self, available: dict, default_group: str) -> tuple[str, dict]:
        """Group of a structure and its `info` for splits, from the entries it has.

        Raises:
            ValueError: an entry that the user named is missing.
        """
        info = {}
        if self.split_keys:
            values = [str(_entry(available, key, "split")) for key in self.split_keys]
            info["strain_state"] = " ".join(values)
        if self.group_key is not None:
            group = _entry(available, self.group_key, "group")
        else:
            group = available.get("group", available.get("config_type", default_group))
        return str(group), info


def _entry(available: dict, key: str, what: str):
    if key not in available:
        known = ", ".join(map(str, available)) or "no entries"
        raise ValueError(f"no {key!r} to {what} by; its info has {known}")
    return available[key]
