"""Would a version go live? Brings one up as the service does, and takes it down again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.reference import Reference
from serving.registry.client import RegistryClient
from serving.registry.store import Store
from serving.runtime.launcher import Launcher
from serving.runtime.loaded import Loaded
from serving.settings import Settings


async def check(settings: Settings, reference: Reference, progress: Callable[[str], None]) -> Loaded:
    """Resolve, load and verify what the reference names; its processes have ended when this returns.

    Raises:
        Rejected: it would not go live.
        RegistryError: it could not be found out.
    """
    registry, launcher = RegistryClient(settings), Launcher()
    launcher.start()
    try:
        progress("asking the registry")
        version = await registry.complete(await registry.resolve(reference))
        progress(f"fetching {version}")
        artifacts = await Store(settings.store_dir, registry.uri).fetch(version, registry.download)
        progress(f"loading and verifying {version}")
        loaded = await asyncio.to_thread(Loaded, version, artifacts, launcher, settings, settings)
        await loaded.start()
        loaded.close()
        return loaded
    finally:
        await launcher.aclose()
        registry.close()
