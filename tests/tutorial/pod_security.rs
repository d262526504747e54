//! Chapters 4.2 and 4.3, "Apply Pod Security Standards at the namespace level" and "… at the cluster level". kind is `mini`, a kind
//! cluster a profile; the files of `/tmp/pss` lie in the test's home.

use crate::images::shelf;
use crate::world::{World, like};

/// What restricted has against the minimal pod.
const WARNING: &str = "Warning: would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"nginx\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"nginx\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")\n";

fn write_pod(w: &World) {
    w.ok("mkdir -p pss && cat <<EOF > pss/nginx-pod.yaml
apiVersion: v1
kind: Pod
metadata:
  name: nginx
spec:
  containers:
    - image: nginx
      name: nginx
      ports:
        - containerPort: 80
EOF");
}

fn cluster_info(w: &World, context: &str) {
    like(
        &w.ok(&format!("kubectl cluster-info --context {context}")),
        "Kubernetes control plane is running at https://127.0.0.1:*\n\
         CoreDNS is running at https://127.0.0.1:*/api/v1/namespaces/kube-system/services/kube-dns:dns/proxy\n\n\
         To further debug and diagnose cluster problems, use 'kubectl cluster-info dump'.",
    );
}

#[test]
fn chapter_4_2() {
    let w = World::new();
    let registry = shelf::registry(&w);
    w.ok(&format!("mini start -p psa-ns-level --image-mirror http://{}", registry.address));
    cluster_info(&w, "psa-ns-level");
    like(&w.ok("kubectl create ns example"), "namespace/example created");
    let said = w.ok("kubectl label --overwrite ns example \
       pod-security.kubernetes.io/warn=baseline \
       pod-security.kubernetes.io/warn-version=latest");
    like(&said, "namespace/example labeled");
    let said = w.ok("kubectl label --overwrite ns example \
      pod-security.kubernetes.io/enforce=baseline \
      pod-security.kubernetes.io/enforce-version=latest \
      pod-security.kubernetes.io/warn=restricted \
      pod-security.kubernetes.io/warn-version=latest \
      pod-security.kubernetes.io/audit=restricted \
      pod-security.kubernetes.io/audit-version=latest");
    like(&said, "namespace/example labeled");
    write_pod(&w);
    let said = w.run("kubectl apply -n example -f pss/nginx-pod.yaml");
    assert_eq!((&*said.out, &*said.err, said.code), ("pod/nginx created\n", WARNING, 0));
    let said = w.run("kubectl apply -n default -f pss/nginx-pod.yaml");
    assert_eq!((&*said.out, &*said.err, said.code), ("pod/nginx created\n", "", 0));
    w.ok("kubectl wait --for=condition=Ready pod/nginx -n example --timeout=60s");
    // What baseline forbids is refused.
    let said = w.fails("kubectl run -n example --image=nginx host --overrides='{\"spec\":{\"hostNetwork\":true}}'");
    assert!(
        said.err.contains("violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"),
        "{}",
        said.err
    );
    w.ok("mini delete -p psa-ns-level");
}

/// A pod of a kind cluster: it waits at its gate, for what it would be allowed to do is the matter.
fn pod(namespace: &str, name: &str, pod: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  schedulingGates: [{{name: example.com/never}}]\n{pod}\
         \x20 containers:\n  - name: c\n    image: nginx\n{container}---\n"
    )
}

#[test]
fn chapter_4_3() {
    let w = World::new();
    let registry = shelf::registry(&w);
    let mirror = format!("--image-mirror http://{}", registry.address);
    w.ok(&format!("mini start -p psa-wo-cluster-pss {mirror}"));
    cluster_info(&w, "psa-wo-cluster-pss");
    // Our own parts are a line of their own in what follows.
    let running = "kubectl get pods -n kube-system --no-headers | grep -c Running";
    w.until("kubectl get pods -n kube-system -w", running, "7\n");
    // The pods that the page finds in a kind cluster.
    let host = "  hostNetwork: true\n  volumes: [{name: v, hostPath: {path: /tmp}}]\n";
    let seccomp = "  securityContext: {seccompProfile: {type: RuntimeDefault}}\n";
    let mut manifest = "apiVersion: v1\nkind: Namespace\nmetadata: {name: local-path-storage}\n---\n".to_owned();
    for name in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        let name = format!("{name}-psa-wo-cluster-pss-control-plane");
        manifest += &pod("kube-system", &name, &format!("{host}{seccomp}"), "");
    }
    manifest += &pod(
        "kube-system",
        "kindnet-vzj42",
        host,
        "    securityContext: {capabilities: {add: [NET_RAW, NET_ADMIN]}}\n",
    );
    manifest += &pod("kube-system", "kube-proxy-m6hwf", host, "    securityContext: {privileged: true}\n");
    let bind = "    securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [NET_BIND_SERVICE], drop: [all]}}\n";
    for name in ["coredns-7bb9c7b568-hsptc", "coredns-7bb9c7b568-v6dmw"] {
        manifest += &pod("kube-system", name, "", bind);
    }
    manifest += &pod("local-path-storage", "local-path-provisioner-d6d9f7ffc-lw9lh", "", "");
    w.write("pods.yaml", &manifest);
    w.ok("kubectl apply -f pods.yaml");

    like(
        &w.ok("kubectl get ns"),
        "NAME                 STATUS   AGE\ndefault              Active   *\nkube-node-lease      Active   *\n\
         kube-public          Active   *\nkube-system          Active   *\nlocal-path-storage   Active   *",
    );
    let labelled = "namespace/default labeled\nnamespace/kube-node-lease labeled\nnamespace/kube-public labeled\n\
        namespace/kube-system labeled\nnamespace/local-path-storage labeled\n";
    let dry_run = |level: &str, warnings: &str| {
        let command =
            format!("kubectl label --dry-run=server --overwrite ns --all pod-security.kubernetes.io/enforce={level}");
        let said = w.run(&command);
        let out = said.out.replace(" (server dry run)", "");
        assert_eq!((&*out, &*said.err, said.code), (labelled, warnings, 0));
    };
    dry_run("privileged", "");
    dry_run(
        "baseline",
        "Warning: existing pods in namespace \"kube-system\" violate the new PodSecurity enforce level \"baseline:latest\"
Warning: coredns-psa-wo-cluster-pss (and 6 other pods): host namespaces
Warning: etcd-psa-wo-cluster-pss-control-plane (and 3 other pods): host namespaces, hostPath volumes
Warning: kindnet-vzj42: non-default capabilities, host namespaces, hostPath volumes
Warning: kube-proxy-m6hwf: host namespaces, hostPath volumes, privileged
",
    );
    // Since v1.25 a check of restricted silences the one of baseline that it contains: the page also names "hostPath volumes"
    // and "non-default capabilities" here.
    dry_run(
        "restricted",
        "Warning: existing pods in namespace \"kube-system\" violate the new PodSecurity enforce level \"restricted:latest\"
Warning: coredns-7bb9c7b568-hsptc (and 1 other pod): unrestricted capabilities, runAsNonRoot != true, seccompProfile
Warning: coredns-psa-wo-cluster-pss (and 6 other pods): host namespaces, allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile
Warning: etcd-psa-wo-cluster-pss-control-plane (and 3 other pods): host namespaces, allowPrivilegeEscalation != false, unrestricted capabilities, restricted volume types, runAsNonRoot != true
Warning: kindnet-vzj42: host namespaces, allowPrivilegeEscalation != false, unrestricted capabilities, restricted volume types, runAsNonRoot != true, seccompProfile
Warning: kube-proxy-m6hwf: host namespaces, privileged, allowPrivilegeEscalation != false, unrestricted capabilities, restricted volume types, runAsNonRoot != true, seccompProfile
Warning: existing pods in namespace \"local-path-storage\" violate the new PodSecurity enforce level \"restricted:latest\"
Warning: local-path-provisioner-d6d9f7ffc-lw9lh: allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile
",
    );
    assert_eq!(
        w.ok("kubectl get ns -o jsonpath='{.items[*].metadata.labels.pod-security\\.kubernetes\\.io/enforce}'"),
        ""
    );

    // Defaults for the whole cluster, from a file. What kind needs a second file for is an option here.
    w.ok("mkdir -p pss
    cat <<EOF > pss/cluster-level-pss.yaml
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1beta1
    kind: PodSecurityConfiguration
    defaults:
      enforce: \"baseline\"
      enforce-version: \"latest\"
      audit: \"restricted\"
      audit-version: \"latest\"
      warn: \"restricted\"
      warn-version: \"latest\"
    exemptions:
      usernames: []
      runtimeClasses: []
      namespaces: [kube-system]
EOF");
    w.ok(&format!(
        "mini start -p psa-with-cluster-pss {mirror} --admission-control-config-file pss/cluster-level-pss.yaml"
    ));
    cluster_info(&w, "psa-with-cluster-pss");
    write_pod(&w);
    let said = w.run("kubectl apply -f pss/nginx-pod.yaml");
    assert_eq!((&*said.out, &*said.err, said.code), ("pod/nginx created\n", WARNING, 0));
    w.ok("kubectl wait --for=condition=Ready pod/nginx --timeout=60s");
    let host = "kubectl run --image=nginx host --overrides='{\"spec\":{\"hostNetwork\":true}}'";
    assert!(w.fails(host).err.contains("violates PodSecurity \"baseline:latest\""));
    assert_eq!(w.run(&format!("{host} -n kube-system")).err, "", "an exempt namespace");
    w.ok("mini delete -p psa-with-cluster-pss");
    w.ok("mini delete -p psa-wo-cluster-pss");
}
