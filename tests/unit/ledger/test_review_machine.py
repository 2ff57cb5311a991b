"""Whatever reviewers do, and in whatever order: a state machine over the real ledger, with a model beside it.

Appeals, leases, leases that run out, verdicts and disagreement. The
model knows who holds what, who has reviewed what, and what settles a review.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.engine import make_url

from personae_runtime.config import ReviewSettings
from personae_runtime.errors import AlreadyExists, FailedPrecondition
from personae_runtime.ledger.database import Database
from personae_runtime.ledger.decisions import insert_decision
from personae_runtime.ledger.memories import MemoryLedger
from personae_runtime.ledger.personas import PersonaLedger
from personae_runtime.ledger.reviews import MODIFY, OVERTURN, UPHOLD, ReviewLedger
from personae_runtime.ledger.sessions import SessionLedger
from personae_runtime.ledger.vault import Vault
from personae_runtime.names import Name
from personae_runtime.personas.definition import PersonaDefinition
from personae_runtime.policy.decision import Action, Decision, PolicyContext, RuleHit, Stage
from tests.unit.ledger.conftest import ONCE

T = TypeVar("T")
REVIEWERS = ("rea", "rob", "ria", "service")
FILED_BY = "service"


@dataclass
class Case:
    """What the model knows of a review."""

    decision: UUID
    double: bool
    holder: str = ""
    outcomes: list[str] = field(default_factory=list)
    final: str = ""


class Reviews(RuleBasedStateMachine):
    """See the module."""

    dsn = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.tenant = f"t{uuid.uuid4().hex[:12]}"
        self.cases: dict[UUID, Case] = {}
        self.reviewed: set[tuple[UUID, str]] = set()
        self.decisions: list[UUID] = []
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def _open(self) -> None:
        self.database = Database(self.dsn, pool_size=2, command_timeout_s=10)
        await self.database.open()
        vault = Vault(bytes(32), self.database)
        self.ledger = ReviewLedger(self.database, vault, ReviewSettings(double_share=0.5))
        personas = PersonaLedger(self.database, vault)
        name = Name(self.tenant, "nadia")
        await personas.create(name, "Nadia", "assistant", ONCE)
        await personas.publish(name, PersonaDefinition(card="You are Nadia."), ONCE)
        sessions = SessionLedger(
            self.database, vault, MemoryLedger(self.database, vault), host="h", lease_s=10, may_store=lambda *_: False
        )
        self.session = await sessions.create(
            name, "s", "ann", age_band="adult", region_code="", disclosure="AI.", mutation=ONCE
        )

    def teardown(self) -> None:
        self.run(self.database.close())
        self.loop.close()

    # Few, so that the same one is appealed again.
    @precondition(lambda self: len(self.decisions) < 2)
    @rule(
        score=st.sampled_from([0.5, 0.7, 0.95]), category=st.sampled_from(["hate", "self_harm"]), double=st.booleans()
    )
    def decide(self, score: float, category: str, double: bool) -> None:
        hit = RuleHit("r", Action.BLOCK, category, "R", f'scores["{category}"] >= 0.4', "d")
        decision = Decision(Action.BLOCK, Stage.INPUT, "1", category, "R", (hit,), scores={category: score})
        # What follows must depend on what was drawn alone.
        while self.ledger.is_double(decision_id := uuid4()) is not double:
            pass
        self.run(
            insert_decision(
                self.database, decision_id, self.tenant, "nadia", self.session.session_pk, 1, PolicyContext(), decision,
                b"{}",
            )
        )  # fmt: skip
        self.decisions.append(decision_id)

    def open_of(self, decision: UUID) -> bool:
        return any(case.decision == decision and not case.final for case in self.cases.values())

    @precondition(lambda self: self.decisions)
    @rule(data=st.data())
    def appeal(self, data: st.DataObject) -> None:
        decision = self.decisions[data.draw(st.integers(0, 99)) % len(self.decisions)]
        known = self.open_of(decision)
        try:
            self.run(
                self.ledger.appeal(
                    self.tenant, decision, user="ann", filed_by=FILED_BY, statement="No.", judged_text="",
                    share_message=False, allow_test=False, mutation=ONCE,
                )
            )  # fmt: skip
        except AlreadyExists:
            assert known
            return
        assert not known
        [new] = [one for one in self.all() if one.review_id not in self.cases]
        self.cases[new.review_id] = Case(decision, self.ledger.is_double(decision))

    def all(self) -> list[Any]:
        return self.run(self.ledger.list_reviews(self.tenant, after=None, limit=1_000))

    def may(self, review: UUID, who: str) -> bool:
        case = self.cases[review]
        free = case.holder in ("", who)
        return not case.final and free and who != FILED_BY and (case.decision, who) not in self.reviewed

    @rule(who=st.sampled_from(REVIEWERS))
    def take_next(self, who: str) -> None:
        got = self.run(self.ledger.lease(self.tenant, who))
        open_to = [one for one in self.all() if one.state == "OPEN" and self.may(one.review_id, who)]
        if got is None:
            assert not open_to
            return
        held = [review for review, case in self.cases.items() if case.holder == who]
        if held:
            assert got.review_id in held
        else:
            assert got.priority.value == max(one.priority.value for one in open_to)
        assert self.may(got.review_id, who)
        assert got.statement == "No."
        self.cases[got.review_id].holder = who

    @precondition(lambda self: self.cases)
    @rule(who=st.sampled_from(REVIEWERS), data=st.data())
    def take_one(self, who: str, data: st.DataObject) -> None:
        review = list(self.cases)[data.draw(st.integers(0, 99)) % len(self.cases)]
        may = self.may(review, who)
        try:
            got = self.run(self.ledger.lease(self.tenant, who, review))
        except FailedPrecondition:
            assert not may
            return
        assert may
        assert got is not None
        self.cases[review].holder = who

    @precondition(lambda self: self.cases)
    @rule(data=st.data())
    def run_out(self, data: st.DataObject) -> None:
        review = list(self.cases)[data.draw(st.integers(0, 99)) % len(self.cases)]
        self.run(
            self.database.execute(
                "UPDATE reviews SET lease_expires_at = now() - interval '1 s' WHERE review_id = $1", review
            )
        )
        self.cases[review].holder = ""

    @precondition(lambda self: self.cases)
    @rule(who=st.sampled_from(REVIEWERS), outcome=st.sampled_from([UPHOLD, OVERTURN, MODIFY]), data=st.data())
    def decide_review(self, who: str, outcome: str, data: st.DataObject) -> None:
        # Mostly what somebody holds.
        holding = [(review, case.holder) for review, case in self.cases.items() if case.holder]
        if holding and data.draw(st.integers(0, 3)):
            review, who = holding[data.draw(st.integers(0, 99)) % len(holding)]
        else:
            review = list(self.cases)[data.draw(st.integers(0, 99)) % len(self.cases)]
        case = self.cases[review]
        try:
            self.run(
                self.ledger.resolve(
                    self.tenant, review, reviewer=who, outcome=outcome, reason_code="C", note="So.", mutation=ONCE
                )
            )
        except FailedPrecondition:
            assert case.final or case.holder != who
            return
        assert case.holder == who
        case.holder = ""
        case.outcomes.append(outcome)
        self.reviewed.add((case.decision, who))
        given = case.outcomes
        if not case.double or len(given) == 3 or (len(given) == 2 and given[0] == given[1]):
            case.final = outcome

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        listed = self.all()
        assert {one.review_id for one in listed} == set(self.cases)
        for one in listed:
            case = self.cases[one.review_id]
            assert (one.state, one.outcome) == (("RESOLVED", case.final) if case.final else ("OPEN", ""))
            assert one.reviewer == case.holder
            assert [verdict.outcome for verdict in one.verdicts] == (case.outcomes if case.final else [])
            assert len({verdict.reviewer for verdict in one.verdicts}) == len(one.verdicts)
        order = [(one.state != "OPEN", -one.priority.value) for one in listed]
        assert order == sorted(order)


def test_reviews_go_as_the_model_says(server_dsn: str) -> None:
    name = f"machine_{uuid.uuid4().hex}"

    async def prepare() -> str:
        connection = await asyncpg.connect(server_dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        await connection.close()
        dsn = make_url(server_dsn).set(database=name).render_as_string(hide_password=False)
        database = Database(dsn, pool_size=2, command_timeout_s=10)
        await database.open()
        await database.migrate()
        await database.close()
        return dsn

    Reviews.dsn = asyncio.run(prepare())
    run_state_machine_as_test(
        Reviews,
        settings=settings(
            max_examples=30,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        ),
    )
