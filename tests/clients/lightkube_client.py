"""lightkube: typed objects over httpx."""

import sys
import threading

from lightkube import ApiError, Client
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.apiextensions_v1 import (
    CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec,
    CustomResourceDefinitionVersion,
    CustomResourceValidation,
    JSONSchemaProps,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import ConfigMap, Namespace, Pod
from lightkube.types import PatchType

GROUP, NS = "lk.example.com", "py-lightkube"


def refused(code, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ApiError as error:
        assert error.status.code == code, error.status
        return error
    raise AssertionError(f"not refused with {code}")


def objects(client):
    made = client.create(ConfigMap(metadata=ObjectMeta(name="a", namespace=NS, labels={"t": "x"}), data={"k": "1"}))
    refused(409, client.create, ConfigMap(metadata=ObjectMeta(name="a", namespace=NS)))
    made.data["k"] = "2"
    assert client.replace(made).data == {"k": "2"}
    refused(409, client.replace, made)
    assert [c.metadata.name for c in client.list(ConfigMap, namespace=NS, labels={"t": "x"})] == ["a"]
    merged = client.patch(ConfigMap, "a", {"data": {"m": "3"}}, namespace=NS, patch_type=PatchType.MERGE)
    assert merged.data == {"k": "2", "m": "3"}
    strategic = client.patch(ConfigMap, "a", {"data": {"m": None}}, namespace=NS, patch_type=PatchType.STRATEGIC)
    assert strategic.data == {"k": "2"}
    operation = [{"op": "test", "path": "/data/k", "value": "other"}]
    refused(422, client.patch, ConfigMap, "a", operation, namespace=NS, patch_type=PatchType.JSON)
    client.delete(ConfigMap, "a", namespace=NS)
    refused(404, client.get, ConfigMap, "a", namespace=NS)


def watched(client):
    seen = []

    def follow():
        for kind, found in client.watch(ConfigMap, namespace=NS, server_timeout=60):
            if found.metadata.name == "w":
                seen.append(kind)
                if kind == "DELETED":
                    return

    thread = threading.Thread(target=follow)
    thread.start()
    client.create(ConfigMap(metadata=ObjectMeta(name="w", namespace=NS)))
    client.patch(ConfigMap, "w", {"data": {"k": "1"}}, namespace=NS, patch_type=PatchType.MERGE)
    client.delete(ConfigMap, "w", namespace=NS)
    thread.join(60)
    # A watch without a resourceVersion begins with what there is: its first event may show the object changed already.
    assert seen[0] == "ADDED" and seen[-1] == "DELETED", seen


def applied(client):
    body = ConfigMap(metadata=ObjectMeta(name="applied", namespace=NS), data={"k": "one"})
    client.apply(body, field_manager="one")
    body.data["k"] = "two"
    try:
        client.apply(body, field_manager="two")
        raise AssertionError("no conflict")
    except ApiError as error:
        assert error.status.code == 409 and ".data.k" in error.status.message, error.status
    assert client.apply(body, field_manager="two", force=True).data == {"k": "two"}


def scaled(client):
    template = {
        "metadata": {"labels": {"app": "s"}},
        "spec": {"containers": [{"name": "c", "image": "mini.local/echo:1.4"}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "s"}}, "template": template}
    made = {"metadata": {"name": "s", "namespace": NS}, "spec": spec}
    client.create(Deployment.from_dict({"apiVersion": "apps/v1", "kind": "Deployment", **made}))
    while True:
        scale = client.get(Deployment.Scale, "s", namespace=NS)
        scale.spec.replicas = 1
        try:
            client.replace(scale, "s", namespace=NS)
            break
        except ApiError as error:  # the controller wrote the Deployment's status in between: read again, as documented
            assert error.status.code == 409, error.status
    client.wait(Deployment, "s", for_conditions=["Available"], namespace=NS)


def custom(client):
    schema = JSONSchemaProps(
        type="object",
        properties={"spec": JSONSchemaProps(type="object", properties={"size": JSONSchemaProps(type="integer")})},
    )
    version = CustomResourceDefinitionVersion(
        name="v1", served=True, storage=True, schema=CustomResourceValidation(openAPIV3Schema=schema)
    )
    spec = CustomResourceDefinitionSpec(
        group=GROUP, scope="Namespaced", versions=[version],
        names=CustomResourceDefinitionNames(kind="Gear", plural="gears", singular="gear"),
    )
    client.create(CustomResourceDefinition(metadata=ObjectMeta(name=f"gears.{GROUP}"), spec=spec))
    client.wait(CustomResourceDefinition, f"gears.{GROUP}", for_conditions=["Established"])
    gear = create_namespaced_resource(GROUP, "v1", "Gear", "gears")
    made = client.create(gear(metadata=ObjectMeta(name="g", namespace=NS), spec={"size": 3, "lost": 1}))
    assert made.spec == {"size": 3}, made
    assert [g.metadata.name for g in client.list(gear, namespace=NS)] == ["g"]
    client.delete(CustomResourceDefinition, f"gears.{GROUP}")


def main():
    client = Client()
    client.create(Namespace(metadata=ObjectMeta(name=NS)))
    objects(client)
    watched(client)
    applied(client)
    scaled(client)
    custom(client)
    assert "started" in "".join(client.log("shell", namespace="default"))
    assert client.get(Pod, "shell", namespace="default").status.phase == "Running"
    client.delete(Namespace, NS)
    print("ok")


sys.exit(main())
