"""What a policy was set to when it was measured: the same in every evaluation of one deployment."""

from __future__ import annotations

from typing import Any

from personae_runtime.policy.policy import Policy


def operating_point(policy: Policy) -> dict[str, Any]:
    """`bundle_digest` (the version's hash) and `thresholds` (rule id -> category -> the numbers its score is compared
    with)."""
    thresholds = {
        rule.spec.id: {category: list(numbers) for category, numbers in found}
        for rule in policy.bundle.rules
        if (found := rule.thresholds)
    }
    return {"bundle_digest": policy.version.rpartition("+")[2], "thresholds": thresholds}
