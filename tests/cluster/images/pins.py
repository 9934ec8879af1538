"""The pins of a requirements file that count for another Python than this one: pins.py VERSION FILE."""

import sys

from pip._vendor.packaging.requirements import Requirement

version, file = sys.argv[1:]
environment = {"python_full_version": version, "python_version": ".".join(version.split(".")[:2])}
with open(file, encoding="utf-8") as lines:
    for line in lines:
        pin = line.split("#")[0].strip()
        requirement = Requirement(pin) if pin else None
        if requirement and (requirement.marker is None or requirement.marker.evaluate(environment)):
            requirement.marker = None
            print(requirement)
