"""kr8s: objects that feel like Python's."""

import sys

import kr8s
from kr8s.objects import ConfigMap, CustomResourceDefinition, Namespace, Pod, new_class

GROUP, NS = "kr.example.com", "py-kr8s"


def config_map(name, **data):
    return ConfigMap({"metadata": {"name": name, "namespace": NS}, "data": data})


def objects():
    made = config_map("a", k="1")
    made.create()
    assert made.exists()
    made.patch({"data": {"k": "2"}})
    assert made.data.k == "2"
    made.label(t="x")
    found = list(kr8s.get("configmaps", namespace=NS, label_selector={"t": "x"}))
    assert [c.name for c in found] == ["a"], found
    made.patch([{"op": "add", "path": "/data/j", "value": "3"}], type="json")
    made.refresh()
    assert dict(made.data) == {"k": "2", "j": "3"}, made.data
    made.delete()
    made.wait("delete", timeout=30)
    assert not config_map("a").exists()


def watched():
    seen = []
    names = iter(["create", "patch", "delete"])
    changed = config_map("w")
    for event, found in kr8s.watch("configmaps", namespace=NS):
        if found.name == "w":
            seen.append(event)
        step = next(names, None)
        if step == "create":
            changed.create()
        elif step == "patch":
            changed.patch({"data": {"k": "1"}})
        elif step == "delete":
            changed.delete()
        if event == "DELETED":
            break
    assert seen == ["ADDED", "MODIFIED", "DELETED"], seen


def custom():
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "Cog", "plural": "cogs", "singular": "cog"}
    spec = {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]}
    definition = CustomResourceDefinition({"metadata": {"name": f"cogs.{GROUP}"}, "spec": spec})
    definition.create()
    # kr8s reads conditions only where there are any: first the names, which come with them.
    definition.wait("jsonpath='{.status.acceptedNames.kind}'=Cog", timeout=30)
    definition.wait("condition=Established", timeout=30)
    cog = new_class(kind="Cog", version=f"{GROUP}/v1", namespaced=True)
    made = cog({"metadata": {"name": "c", "namespace": NS}, "spec": {"size": 3, "lost": 1}})
    made.create()
    assert dict(made.spec) == {"size": 3}, made.spec
    assert [c.name for c in cog.list(namespace=NS)] == ["c"]
    definition.delete()


def executed():
    pod = Pod.get("shell", namespace="default")
    assert pod.ready()
    result = pod.exec(["sh", "-c", "echo out; echo err >&2"])
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n"), result
    failed = pod.exec(["sh", "-c", "exit 3"], check=False)
    assert failed.returncode == 3, failed
    assert "started" in "\n".join(pod.logs())


def main():
    Namespace({"metadata": {"name": NS}}).create()
    objects()
    config_map("first").create()
    watched()
    custom()
    executed()
    Namespace.get(NS).delete()
    print("ok")


sys.exit(main())
