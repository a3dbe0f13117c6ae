"""The variables of the PhysioNet/CinC Challenge 2012: their plausible ranges, and how they are treated."""

from __future__ import annotations

RANGES: dict[str, tuple[float, float]] = {
    # Of the patient at admission; Weight is measured later too.
    "Age": (15, 120),  # years
    "Gender": (0, 1),  # 0 female, 1 male
    "Height": (100, 230),  # cm; some are in other units
    "ICUType": (1, 4),  # 1 coronary care, 2 cardiac surgery recovery, 3 medical, 4 surgical
    "Weight": (20, 300),  # kg
    # Over time. Wide enough for all values of living patients; outside are misplaced decimal points and disconnected sensors.
    "Albumin": (0.3, 10),  # g/dL
    "ALP": (1, 10_000),  # IU/L
    "ALT": (0, 50_000),  # IU/L
    "AST": (0, 50_000),  # IU/L
    "Bilirubin": (0, 100),  # mg/dL
    "BUN": (0, 400),  # mg/dL
    "Cholesterol": (10, 1500),  # mg/dL
    "Creatinine": (0, 50),  # mg/dL
    "DiasABP": (5, 250),  # mmHg, invasive
    "FiO2": (0.2, 1),  # fraction
    "GCS": (3, 15),
    "Glucose": (5, 3000),  # mg/dL
    "HCO3": (1, 70),  # mmol/L
    "HCT": (5, 75),  # %
    "HR": (10, 350),  # 1/min
    "K": (1, 15),  # mmol/L
    "Lactate": (0, 50),  # mmol/L
    "Mg": (0.2, 20),  # mmol/L
    "MAP": (10, 300),  # mmHg, invasive
    "MechVent": (0, 1),  # 1 ventilated
    "Na": (80, 220),  # mmol/L
    "NIDiasABP": (5, 250),  # mmHg
    "NIMAP": (10, 300),  # mmHg
    "NISysABP": (20, 350),  # mmHg
    "PaCO2": (5, 250),  # mmHg
    "PaO2": (10, 800),  # mmHg
    "pH": (6.5, 8),
    "Platelets": (0, 3000),  # 1000/uL
    "RespRate": (0, 120),  # 1/min; 0 is apnoea
    "SaO2": (20, 100),  # %
    "SysABP": (20, 350),  # mmHg, invasive
    "Temp": (25, 45),  # degrees Celsius
    "TroponinI": (0, 500),  # ug/L
    "TroponinT": (0, 100),  # ug/L
    "Urine": (0, 10_000),  # mL
    "WBC": (0, 1000),  # 1000/uL
}
"""The smallest and the largest value of each variable that counts as a measurement."""

VARIABLES = tuple(RANGES)

DESCRIBING = tuple(VARIABLES.index(name) for name in ("Age", "Gender", "Height", "ICUType", "Weight"))
"""The numbers of the variables that describe a patient if they are recorded at 00:00."""

LOGGED = (
    "ALP", "ALT", "AST", "Bilirubin", "BUN", "Creatinine", "Glucose", "Lactate", "PaO2", "Platelets", "TroponinI", "TroponinT",
    "Urine", "WBC",
)  # fmt: skip
"""Variables with a long tail to the right, of which log(1 + x) is standardised instead of x."""
