"""What a service record becomes when its user changes it; carrying the change out is `update.py`'s."""

from __future__ import annotations

from msgspec.structs import replace

from swarmlet.errors import InvalidArgument
from swarmlet.model.service import PortConfig, Service, ServiceSpec, UpdateStatus


def with_spec(service: Service, spec: ServiceSpec, ports: tuple[PortConfig, ...], now: int) -> Service:
    """The service with a new spec. Whatever update was going on or paused is forgotten: this one begins anew.

    The spec version only grows if tasks would run something else: scaling is no update.
    """
    changed = spec.task_template != service.spec.task_template or ports != service.ports
    return replace(
        service,
        spec=spec,
        spec_version=service.spec_version + changed,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        ports=ports,
        update_status=None,
        updated_at=now,
    )


def rolled_back(service: Service, ports: tuple[PortConfig, ...], now: int) -> Service:
    """The service back at its previous spec, as the user asked; a second time brings it forth again.

    ports: those of `service.previous_spec`. InvalidArgument if there is no previous spec.
    """
    if service.previous_spec is None:
        raise InvalidArgument(f"service {service.spec.name} does not have a previous spec")
    status = UpdateStatus(state="rollback_started", started_at=now, message="manually requested rollback")
    return replace(with_spec(service, service.previous_spec, ports, now), update_status=status)
