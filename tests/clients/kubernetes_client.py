"""The official Python client."""

import json
import sys
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.stream import stream

GROUP, PLURAL, NS = "py.example.com", "gadgets", "py-kubernetes"


def definition():
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}},
    }
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": PLURAL, "singular": "gadget", "kind": "Gadget"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def refused(code, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except client.exceptions.ApiException as error:
        assert error.status == code, (error.status, error.body)
        return error
    raise AssertionError(f"not refused with {code}")


def objects(core):
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a", labels={"t": "x"}), data={"k": "1"})
    made = core.create_namespaced_config_map(NS, body)
    assert made.metadata.uid and made.metadata.creation_timestamp
    refused(409, core.create_namespaced_config_map, NS, body)
    made.data["k"] = "2"
    replaced = core.replace_namespaced_config_map("a", NS, made)
    assert replaced.metadata.resource_version != made.metadata.resource_version
    refused(409, core.replace_namespaced_config_map, "a", NS, made)
    names = [c.metadata.name for c in core.list_namespaced_config_map(NS, label_selector="t=x").items]
    assert names == ["a"], names
    # The client sends a merge patch for a dict and a JSON patch for a list.
    merged = core.patch_namespaced_config_map("a", NS, {"data": {"m": "3"}})
    assert merged.data == {"k": "2", "m": "3"}, merged.data
    patched = core.patch_namespaced_config_map("a", NS, [{"op": "remove", "path": "/data/m"}])
    assert patched.data == {"k": "2"}, patched.data
    core.delete_namespaced_config_map("a", NS)
    refused(404, core.read_namespaced_config_map, "a", NS)


def pages(core):
    for i in range(7):
        core.create_namespaced_config_map(NS, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"page-{i}")))
    seen, token = [], None
    while True:
        page = core.list_namespaced_config_map(NS, limit=3, _continue=token)
        seen += [c.metadata.name for c in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert [n for n in seen if n.startswith("page-")] == [f"page-{i}" for i in range(7)], seen
    core.delete_collection_namespaced_config_map(NS)
    left = [c.metadata.name for c in core.list_namespaced_config_map(NS).items]
    assert not [n for n in left if n.startswith("page-")], left


def watched(core):
    start = core.list_namespaced_config_map(NS).metadata.resource_version
    seen, watcher = [], watch.Watch()

    def follow():
        for event in watcher.stream(core.list_namespaced_config_map, NS, resource_version=start, timeout_seconds=60):
            if event["object"].metadata.name == "w":
                seen.append(event["type"])
                if event["type"] == "DELETED":
                    watcher.stop()

    thread = threading.Thread(target=follow)
    thread.start()
    core.create_namespaced_config_map(NS, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="w")))
    core.patch_namespaced_config_map("w", NS, {"data": {"k": "1"}})
    core.delete_namespaced_config_map("w", NS)
    thread.join(60)
    assert seen == ["ADDED", "MODIFIED", "DELETED"], seen


def applied(dyn):
    maps = dyn.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": "one"}}
    maps.server_side_apply(body=body, name="applied", namespace=NS, field_manager="one")
    other = {**body, "data": {"k": "two"}}
    try:
        maps.server_side_apply(body=other, name="applied", namespace=NS, field_manager="two")
        raise AssertionError("no conflict")
    except dynamic.exceptions.ConflictError as error:
        assert 'conflict with "one": .data.k' in json.loads(error.body)["message"], error.body
    forced = maps.server_side_apply(
        body=other, name="applied", namespace=NS, field_manager="two", force_conflicts=True
    )
    assert forced.data.k == "two"


def custom(api, dyn):
    extensions, objects = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api)
    extensions.create_custom_resource_definition(definition())
    for event in watch.Watch().stream(extensions.list_custom_resource_definition, timeout_seconds=60):
        found = event["object"]
        conditions = {c.type: c.status for c in (found.status.conditions or [])} if found.status else {}
        if found.metadata.name == f"{PLURAL}.{GROUP}" and conditions.get("Established") == "True":
            break
    gadget = {"apiVersion": f"{GROUP}/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"size": 3, "lost": 1}}
    made = objects.create_namespaced_custom_object(GROUP, "v1", NS, PLURAL, gadget)
    assert made["spec"] == {"size": 3}, made
    wrong = {**gadget, "metadata": {"name": "h"}, "spec": {"size": 0}}
    error = refused(422, objects.create_namespaced_custom_object, GROUP, "v1", NS, PLURAL, wrong)
    assert "spec.size in body should be greater than or equal to 1" in error.body, error.body
    patched = objects.patch_namespaced_custom_object(GROUP, "v1", NS, PLURAL, "g", {"spec": {"size": 4}})
    assert patched["spec"]["size"] == 4, patched
    dyn.resources.invalidate_cache()
    found = dyn.resources.get(api_version=f"{GROUP}/v1", kind="Gadget").get(namespace=NS)
    assert [g.metadata.name for g in found.items] == ["g"]
    extensions.delete_custom_resource_definition(f"{PLURAL}.{GROUP}")


def executed(core):
    out = stream(
        core.connect_get_namespaced_pod_exec, "shell", "default", command=["sh", "-c", "echo out; echo err >&2; cat"],
        stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
    )
    out.write_stdin("in\n")
    text = ""
    while "in" not in text:
        out.update(timeout=30)
        text += out.read_stdout(timeout=1) or ""
    assert text.split() == ["out", "in"], text
    assert out.read_stderr(timeout=5).strip() == "err"
    out.close()
    logs = core.read_namespaced_pod_log("shell", "default")
    assert "started" in logs, logs


def main():
    config.load_kube_config()
    api = client.ApiClient()
    core, dyn = client.CoreV1Api(api), dynamic.DynamicClient(api)
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NS)))
    objects(core)
    pages(core)
    watched(core)
    applied(dyn)
    custom(api, dyn)
    executed(core)
    core.delete_namespace(NS)
    print("ok")


sys.exit(main())
