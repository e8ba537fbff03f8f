"""What the operator allows on this kernel: settings and fitness, in the core's words."""

from __future__ import annotations

from accel.core.plan import Policy
from accel.datapath.fitness import Fitness
from accel.settings import Settings


def policy_of(settings: Settings, fitness: Fitness) -> Policy:
    return Policy(
        trust_apps=settings.trust_apps,
        trust_possible=fitness.trust_possible,
        trust_forced=settings.force_trust,
        enrol_apps_possible=fitness.enrol_apps_possible,
        overrides=settings.pods,
        namespaces=settings.namespaces,
        accelerate=settings.accelerate,
    )
