"""What policy says of a text, and why."""

from __future__ import annotations

from personae.v1 import event_pb2, persona_service_pb2
from personae.v1 import policy_service_pb2 as pb
from personae.v1.policy_service_pb2_grpc import PolicyServiceStub
from personae_client.transport import Transport


class Policy:
    """PolicyService. Every method raises PersonaeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = PolicyServiceStub(transport.channel)

    async def classify(
        self,
        parent: str,
        text: str,
        stage: event_pb2.PolicyStage,
        *,
        persona_type: persona_service_pb2.PersonaType = persona_service_pb2.PERSONA_TYPE_UNSPECIFIED,
        age_band: pb.AgeBand = pb.AGE_BAND_UNSPECIFIED,
        region_code: str = "",
    ) -> pb.ClassifyResponse:
        """Decide as a turn of a tenant would, explain, and record nothing."""
        request = pb.ClassifyRequest(
            parent=parent,
            text=text,
            stage=stage,
            persona_type=persona_type,
            age_band=age_band,
            region_code=region_code,
        )
        return await self._transport.unary(self._stub.Classify, request)
