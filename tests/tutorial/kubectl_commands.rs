//! kubectl's whole command set, with the kubectl of three Debian releases: v1.20, v1.32 and v1.36 (`tests/clients/prepare`).
//! What a command must say is what the kubectl reference and the task pages of Kubernetes' documentation show. kubectl 1.20 sends
//! kinds that Kubernetes v1.35 has not (`batch/v1beta1`, `policy/v1beta1`): there the refusal is what is expected.

use std::path::Path;

use crate::images::busybox;
use crate::watch::Watch;
use crate::world::{Said, World, like};

/// A cluster, and the kubectl that is tried on it.
struct Kubectl {
    w: World,
    /// 36 for v1.36.
    minor: u32,
}

impl Kubectl {
    /// Runs `kubectl COMMAND`, which must succeed.
    #[track_caller]
    fn ok(&self, command: &str) -> String {
        self.w.ok(&format!("kubectl {command}"))
    }

    /// Runs `kubectl COMMAND`, which must succeed and say something of this shape.
    #[track_caller]
    fn says(&self, command: &str, pattern: &str) {
        like(&self.ok(command), pattern);
    }

    /// Runs `kubectl COMMAND`, which must fail and name this.
    #[track_caller]
    fn refuses(&self, command: &str, part: &str) -> Said {
        let said = self.w.fails(&format!("kubectl {command}"));
        assert!(said.err.contains(part) || said.out.contains(part), "{part:?} is not in {}{}", said.out, said.err);
        said
    }

    /// Runs `kubectl COMMAND` with an editor that makes one change.
    fn edits(&self, change: &str, command: &str) -> Said {
        self.w.write("editor", &format!("#!/bin/sh\nsed -i '{change}' \"$1\"\n"));
        self.w.run(&format!("chmod +x editor && KUBE_EDITOR=./editor kubectl {command}"))
    }

    /// One field of an object.
    #[track_caller]
    fn field(&self, object: &str, path: &str) -> String {
        self.ok(&format!("get {object} -o jsonpath='{{{path}}}'"))
    }

    /// Applies a manifest.
    #[track_caller]
    fn apply(&self, manifest: &str) {
        self.w.write("manifest.yaml", manifest);
        self.ok("apply -f manifest.yaml");
    }
}

#[test]
fn kubectl_1_20() {
    every_command(20);
}

#[test]
fn kubectl_1_32() {
    every_command(32);
}

#[test]
fn kubectl_1_36() {
    every_command(36);
}

fn every_command(minor: u32) {
    let clients = std::env::var("MINI_TEST_CLIENTS").expect("tests/run sets MINI_TEST_CLIENTS");
    let path = format!("{clients}/kubectl-1.{minor}");
    if let Ok(why) = std::fs::read_to_string(format!("{path}.missing")) {
        println!("{why}");
        return;
    }
    assert!(Path::new(&path).exists(), "tests/clients/prepare fetches {path}");
    let k = Kubectl { w: World::new().with_kubectl(&path), minor };
    k.w.ok("mini start");
    k.w.ok("mini addons enable metrics-server");
    std::fs::write(k.w.home().join("shell.tar"), busybox("shell:1", Vec::new(), &["/bin/sh"], &[])).expect("written");
    k.w.ok("mini image load shell.tar");
    cluster(&k);
    configuration(&k);
    plugins(&k);
    preferences(&k);
    generators(&k);
    generators_of_services_and_access(&k);
    printed(&k);
    changed(&k);
    raw(&k);
    cascades(&k);
    patched(&k);
    applied(&k);
    applied_by_the_server(&k);
    pruned_and_waited_for(&k);
    explained(&k);
    pods(&k);
    streams(&k);
    debugged(&k);
    rollouts(&k);
    set(&k);
    scaled(&k);
    allowed(&k);
    certificates(&k);
    measured(&k);
    nodes(&k);
}

/// version, cluster-info, api-versions, api-resources, get --raw.
fn cluster(k: &Kubectl) {
    let version = k.ok("version");
    assert!(version.contains(&format!("v1.{}.", k.minor)) && version.contains("v1.35."), "{version}");
    let info = k.ok("cluster-info");
    assert!(info.contains("is running at") && info.contains("https://127.0.0.1:"), "{info}");
    let versions = k.ok("api-versions");
    for version in
        ["v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1", "metrics.k8s.io/v1beta1"]
    {
        assert!(versions.lines().any(|line| line == version), "{version} is not in {versions}");
    }
    let rows = k.w.table("kubectl api-resources");
    let deployments = rows.iter().find(|row| row["NAME"] == "deployments").expect("deployments exist");
    assert_eq!((&*deployments["SHORTNAMES"], &*deployments["KIND"]), ("deploy", "Deployment"));
    let names = k.ok("api-resources --namespaced=false --verbs=list -o name");
    assert!(names.contains("nodes\n") && !names.contains("pods\n"), "{names}");
    let wide = k.ok("api-resources --api-group=apps -o wide");
    assert!(
        wide.contains("statefulsets") && wide.contains("deletecollection") && !wide.contains("configmaps"),
        "{wide}"
    );
    assert_eq!(k.ok("get --raw /readyz").trim(), "ok");
    k.refuses("get nonsense", "the server doesn't have a resource type \"nonsense\"");
}

/// config, completion, options, plugin, kustomize: what needs no cluster.
fn configuration(k: &Kubectl) {
    assert_eq!(k.ok("config current-context").trim(), "mini");
    let view = k.ok("config view --minify");
    assert!(view.contains("kind: Config") && view.contains("current-context: mini"), "{view}");
    k.says("config set-context other --cluster=mini --user=mini --namespace=kube-system", "Context \"other\" created.");
    k.says("config use-context other", "Switched to context \"other\".");
    k.says("config get-contexts -o name", "mini\nother");
    assert!(k.ok("get services -o name").contains("service/kube-dns"), "the context's namespace is used");
    k.ok("config use-context mini");
    k.says("config rename-context other renamed", "Context \"other\" renamed to \"renamed\".");
    k.says("config delete-context renamed", "deleted context renamed from *");
    k.says("config set-cluster other --server=https://127.0.0.1:1", "Cluster \"other\" set.");
    k.says("config get-clusters", "NAME\n*mini*");
    k.says("config delete-cluster other", "deleted cluster other from *");
    k.says("config set contexts.mini.namespace kube-system", "Property \"contexts.mini.namespace\" set.");
    k.says("config unset contexts.mini.namespace", "Property \"contexts.mini.namespace\" unset.");
    k.says("config get-users", "NAME\nmini");
    assert!(k.ok("completion bash").contains("__start_kubectl"));
    assert!(k.ok("options").contains("--kubeconfig"));
    k.w.ok("mkdir -p site");
    k.w.write("site/greeting.txt", "hello");
    k.w.write(
        "site/kustomization.yaml",
        "namePrefix: my-\ncommonLabels: {site: a}\nconfigMapGenerator:\n- name: greeting\n  files: [greeting.txt]\n",
    );
    let built = k.ok("kustomize site");
    assert!(built.contains("name: my-greeting-") && built.contains("site: a"), "{built}");
    k.says("apply -k site", "configmap/my-greeting-* created");
    let map = k.ok("get configmap -l site=a -o jsonpath='{.items[0].data.greeting\\.txt}'");
    assert_eq!(map, "hello");
    k.says("delete -k site", "configmap \"my-greeting-*\" deleted*");
}

/// plugin, as the page "Extend kubectl with plugins" does it.
fn plugins(k: &Kubectl) {
    k.refuses("plugin list", "unable to find any kubectl plugins in your PATH");
    k.w.write("kubectl-greet", "#!/bin/sh\necho I greet $1\n");
    k.w.ok("chmod +x kubectl-greet");
    let list = k.w.ok("PATH=$PWD:$PATH kubectl plugin list");
    assert!(
        list.contains("The following compatible plugins are available:") && list.contains("/kubectl-greet"),
        "{list}"
    );
    assert_eq!(k.w.ok("PATH=$PWD:$PATH kubectl greet you"), "I greet you\n");
}

/// kuberc: defaults and aliases, as the page "Kubectl user preferences (kuberc)" describes them.
fn preferences(k: &Kubectl) {
    if k.minor < 36 {
        return;
    }
    k.w.write(
        "kuberc.yaml",
        "apiVersion: kubectl.config.k8s.io/v1beta1\nkind: Preference\n\
         defaults: [{command: get, options: [{name: output, default: name}]}]\n\
         aliases: [{name: getns, command: get, prependArgs: [namespaces]}]\n",
    );
    k.says("get namespace default --kuberc=kuberc.yaml", "namespace/default");
    k.says("get namespace default --kuberc=kuberc.yaml -o jsonpath='{.metadata.name}'", "default");
    k.says("getns default --kuberc=kuberc.yaml", "NAME*STATUS*AGE\ndefault*Active*");
    k.says(
        "kuberc set --kuberc=kuberc.yaml --section aliases --name mkmap --command 'create configmap' \
         --prependarg from-alias --option dry-run=client",
        "Updated *kuberc.yaml",
    );
    assert!(k.ok("kuberc view --kuberc=kuberc.yaml").contains("name: mkmap"));
    k.says("mkmap --kuberc=kuberc.yaml", "configmap/from-alias created (dry run)");
    let get = "kubectl get namespace default";
    let both = k.w.ok(&format!(
        "mkdir -p .kube && cp kuberc.yaml .kube/kuberc && {get} && KUBECTL_KUBERC=false {get} && rm .kube/kuberc"
    ));
    like(&both, "namespace/default\nNAME*STATUS*AGE\ndefault*Active*");
}

/// create with each generator that makes a workload or what belongs to one.
fn generators(k: &Kubectl) {
    let old = k.minor < 21;
    k.w.write("settings.env", "COLOR=blue\nSIZE=3\n");
    k.says("create namespace made", "namespace/made created");
    k.says("create configmap literal --from-literal=key1=a --from-literal=key2=b", "configmap/literal created");
    k.says("create configmap files --from-file=settings.env --from-file=named=settings.env", "configmap/files created");
    assert_eq!(k.field("configmap/files", ".data.named"), "COLOR=blue\nSIZE=3\n");
    k.says("create configmap env --from-env-file=settings.env", "configmap/env created");
    assert_eq!(k.field("configmap/env", ".data.SIZE"), "3");
    k.refuses("create configmap env", "configmaps \"env\" already exists");
    k.says(
        "create deployment made --image=mini.local/echo:1.4 --replicas=0 --port=8080",
        "deployment.apps/made created",
    );
    assert_eq!(k.field("deployment/made", ".spec.template.spec.containers[0].ports[0].containerPort"), "8080");
    k.says("create job made --image=shell:1 -- true", "job.batch/made created");
    let cron = "create cronjob made --image=shell:1 --schedule='0 0 1 1 *' -- date";
    let budget = "create poddisruptionbudget made --selector=app=made --min-available=50%";
    if old {
        k.refuses(cron, "the server could not find the requested resource");
        k.refuses(budget, "no matches for kind \"PodDisruptionBudget\" in version \"policy/v1beta1\"");
    } else {
        k.says(cron, "cronjob.batch/made created");
        k.says("create job from-cron --from=cronjob/made", "job.batch/from-cron created");
        assert_eq!(k.field("job/from-cron", ".metadata.annotations.cronjob\\.kubernetes\\.io/instantiate"), "manual");
        k.says(budget, "poddisruptionbudget.policy/made created");
        k.ok("wait --for=condition=Complete job/from-cron --timeout=60s");
        k.ok("delete cronjob/made pdb/made");
    }
    k.ok("wait --for=condition=Complete job/made --timeout=60s");
    k.says("create priorityclass made --value=1000 --description=high", "priorityclass.scheduling.k8s.io/made created");
    k.says("create quota made --hard=cpu=1,pods=2 -n made", "resourcequota/made created");
    let hard = "kubectl get quota made -n made -o jsonpath='{.status.hard.pods}'";
    k.w.until("kubectl get quota made -n made -w", hard, "2");
    k.w.ok("openssl req -x509 -newkey rsa:2048 -nodes -keyout tls.key -out tls.crt -subj /CN=made -days 2 2>/dev/null");
    k.says("create secret generic made --from-literal=password=hidden", "secret/made created");
    assert_eq!(k.field("secret/made", ".data.password"), "aGlkZGVu");
    k.says("create secret tls made-tls --cert=tls.crt --key=tls.key", "secret/made-tls created");
    assert_eq!(k.field("secret/made-tls", ".type"), "kubernetes.io/tls");
    k.says(
        "create secret docker-registry made-registry --docker-username=u --docker-password=p --docker-server=registry.test",
        "secret/made-registry created",
    );
    assert_eq!(k.field("secret/made-registry", ".type"), "kubernetes.io/dockerconfigjson");
    k.ok("delete deployment/made job/made secret/made-tls secret/made-registry priorityclass/made");
    // Without a server's eyes, with them but without an effect, and from standard input.
    let dry = k.ok("create deployment dry --image=x --dry-run=client -o yaml");
    assert!(dry.contains("kind: Deployment") && !dry.contains("uid:"), "{dry}");
    k.w.write("dry.yaml", &dry);
    k.says("create -f dry.yaml --dry-run=server", "deployment.apps/dry created (server dry run)");
    k.refuses("get deployment dry", "deployments.apps \"dry\" not found");
    k.w.ok("kubectl create -f - < dry.yaml && kubectl delete -f dry.yaml");
    k.ok("delete configmap literal files env");
}

/// create with the generators of Services, an Ingress, accounts and roles.
fn generators_of_services_and_access(k: &Kubectl) {
    k.says("create service clusterip made --tcp=5678:8080", "service/made created");
    k.says("create service nodeport made-port --tcp=80 --node-port=31234", "service/made-port created");
    assert_eq!(k.field("service/made-port", ".spec.ports[0].nodePort"), "31234");
    k.says("create service loadbalancer made-balancer --tcp=80", "service/made-balancer created");
    k.says("create service externalname made-name --external-name example.test", "service/made-name created");
    k.says(
        "create ingress made --rule='foo.test/bar*=made:5678,tls=made-tls' --annotation=a=b",
        "ingress.networking.k8s.io/made created",
    );
    assert_eq!(k.field("ingress/made", ".spec.rules[0].http.paths[0].pathType"), "Prefix");
    k.ok("delete service/made service/made-port service/made-balancer service/made-name ingress/made");
    k.says("create serviceaccount made", "serviceaccount/made created");
    if k.minor >= 24 {
        let token = k.ok("create token made --duration=10m");
        assert_eq!(token.trim().split('.').count(), 3, "a JSON web token");
    }
    let rbac = "rbac.authorization.k8s.io";
    k.says("create role made --verb=get,list --resource=pods,deployments.apps", &format!("role.{rbac}/made created"));
    assert_eq!(k.field("role/made", ".rules[*].apiGroups[0]").trim(), "apps");
    k.says(
        "create rolebinding made --role=made --serviceaccount=default:made",
        &format!("rolebinding.{rbac}/made created"),
    );
    k.says(
        "create clusterrole made --verb=get --resource=nodes --resource-name=mini",
        &format!("clusterrole.{rbac}/made created"),
    );
    k.says(
        "create clusterrole made-url --verb=get --non-resource-url=/logs/*",
        &format!("clusterrole.{rbac}/made-url created"),
    );
    k.says("create clusterrole made-sum --aggregation-rule=a=b", &format!("clusterrole.{rbac}/made-sum created"));
    k.says(
        "create clusterrolebinding made --clusterrole=made --user=jane",
        &format!("clusterrolebinding.{rbac}/made created"),
    );
    k.ok("delete clusterrole/made-url clusterrole/made-sum");
}

/// get in its forms, describe.
fn printed(k: &Kubectl) {
    k.ok("create configmap one --from-literal=num=1");
    k.ok("create configmap two --from-literal=num=2");
    k.ok("label configmap one two kind=number");
    let yaml = k.ok("get configmap one -o yaml");
    assert!(yaml.starts_with("apiVersion: v1\ndata:\n  num: \"1\"\nkind: ConfigMap\nmetadata:\n"), "{yaml}");
    assert!(!yaml.contains("managedFields") || k.minor < 21, "kubectl hides managedFields since v1.21");
    assert!(k.ok("get configmap one -o json").contains("\"apiVersion\": \"v1\""));
    k.says("get configmap -l kind=number -o name", "configmap/one\nconfigmap/two");
    k.says("get configmap -l kind=number --no-headers", "one*1*two*1*");
    k.says("get configmap one --show-labels", "NAME*DATA*AGE*LABELS\none*1*kind=number");
    k.says("get configmap one -L kind", "NAME*DATA*AGE*KIND\none*number");
    k.says("get cm/one cm/two -o custom-columns=NAME:.metadata.name,N:.data.num", "NAME*N\none*1\ntwo*2");
    k.says(
        "get cm -l kind=number --sort-by='{.data.num}' -o go-template='{{range .items}}{{.data.num}} {{end}}'",
        "1 2",
    );
    k.says("get cm --field-selector=metadata.name=two -o name", "configmap/two");
    k.says("get cm,secret -l 'kind in (number)' --show-kind", "NAME*configmap/one*configmap/two*");
    assert!(k.ok("get all -A").contains("service/kubernetes"));
    k.says("get cm nothing --ignore-not-found", "");
    let mut watch = Watch::get(&k.w, "kubectl get configmap one -o name --watch --output-watch-events=false");
    watch.contains("configmap/one");
    k.says(
        "describe configmap one",
        "Name:*one\nNamespace:*default\nLabels:*kind=number\n*Data\n====\nnum:\n----\n1\n*",
    );
    let node = k.ok("describe node mini");
    assert!(node.contains("Allocated resources:") && node.contains("Capacity:"), "{node}");
}

/// label, annotate, edit, replace, delete.
fn changed(k: &Kubectl) {
    k.says("label configmap one size=big --dry-run=server", "configmap/one labeled*");
    assert_eq!(k.field("configmap/one", ".metadata.labels.size"), "");
    k.says("label configmap one size=big", "configmap/one labeled");
    k.refuses("label configmap one size=small", "'size' already has a value (big), and --overwrite is false");
    k.says("label --overwrite configmap one size=small", "configmap/one labeled");
    k.says("label configmap one size-", if k.minor < 21 { "configmap/one labeled" } else { "configmap/one unlabeled" });
    k.refuses("label configmap one size='not valid'", "a valid label must be");
    k.says("annotate configmap one description='my map'", "configmap/one annotated");
    k.says("annotate configmap --all description- --field-manager=me", "configmap/*annotated*");
    let untouched = k.edits("", "edit configmap one");
    assert!(untouched.code == 0 && untouched.err.contains("Edit cancelled, no changes made."), "{}", untouched.err);
    let edited = k.edits("s/num:.*/num: \"5\"/", "edit configmap one");
    assert_eq!((edited.code, edited.out.trim()), (0, "configmap/one edited"), "{}", edited.err);
    assert_eq!(k.field("configmap/one", ".data.num"), "5");
    let refused = k.edits("s/num:.*/num: 5/", "edit configmap one");
    let number = "json: cannot unmarshal number into Go struct field ConfigMap.data of type string";
    assert!(refused.code == 1 && refused.err.contains(number), "{}", refused.err);
    k.w.ok("kubectl get configmap one -o yaml | sed 's/num: \"5\"/num: \"6\"/' > one.yaml");
    k.says("replace -f one.yaml", "configmap/one replaced");
    assert_eq!(k.field("configmap/one", ".data.num"), "6");
    k.refuses("replace -f one.yaml", "the object has been modified; please apply your changes to the latest version");
    let uid = k.field("configmap/one", ".metadata.uid");
    k.w.ok("sed -i '/resourceVersion/d; /uid/d' one.yaml");
    k.says("replace --force -f one.yaml", "configmap \"one\" deleted*configmap/one replaced");
    assert_ne!(k.field("configmap/one", ".metadata.uid"), uid);
    k.says("delete configmap one --dry-run=server", "configmap \"one\" deleted*(server dry run)*");
    k.says("delete configmap -l kind=number", "configmap \"one\" deleted*configmap \"two\" deleted*");
    k.refuses("delete configmap one", "configmaps \"one\" not found");
    k.says("delete namespace made --wait", "namespace \"made\" deleted*");
    k.refuses("get namespace made", "namespaces \"made\" not found");
}

/// --raw: what is sent and answered goes as it is.
fn raw(k: &Kubectl) {
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |data: &str| {
        k.w.write(
            "raw.json",
            &format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"raw"}},"data":{{"a":"{data}"}}}}"#),
        );
    };
    map("1");
    assert!(k.ok(&format!("create --raw {maps} -f raw.json")).contains("\"uid\""));
    k.refuses(&format!("create --raw {maps} -f raw.json"), "configmaps \"raw\" already exists");
    map("2");
    assert!(k.ok(&format!("replace --raw {maps}/raw -f raw.json")).contains(r#""data":{"a":"2"}"#));
    assert!(k.ok(&format!("get --raw {maps}/raw")).contains(r#""data":{"a":"2"}"#));
    let deleted = k.ok(&format!("delete --raw {maps}/raw"));
    assert!(deleted.contains(r#""status":"Success""#), "{deleted}");
    k.refuses(&format!("get --raw {maps}/raw"), "(NotFound)");
}

/// delete with each propagation policy, as the page "Use Cascading Deletion in a Cluster" does it.
fn cascades(k: &Kubectl) {
    let create = || {
        k.ok("create deployment cascade --image=mini.local/echo:1.4");
        k.ok("rollout status deployment/cascade --timeout=60s");
    };
    let left = |kind: &str| k.ok(&format!("get {kind} -l app=cascade -o name")).trim().to_owned();
    create();
    let set = left("replicaset");
    assert_eq!(k.field(&set, ".metadata.ownerReferences[0].kind"), "Deployment");
    k.says("delete deployment cascade --cascade=orphan", "deployment.apps \"cascade\" deleted*");
    assert_eq!(k.field(&set, ".metadata.ownerReferences"), "", "the ReplicaSet stays, and is nobody's");
    like(&left("pods"), "pod/cascade-*");
    // kubectl waits for the ReplicaSet, which waits for its pods.
    k.says(&format!("delete {set} --cascade=foreground"), "replicaset.apps \"cascade-*\" deleted*");
    assert_eq!(left("pods"), "");
    create();
    k.says("delete deployment cascade --cascade=background", "deployment.apps \"cascade\" deleted*");
    // The rest goes without anybody waiting; where all of it has gone already, an old kubectl finds that an error.
    k.w.run("kubectl wait --for=delete replicaset,pods -l app=cascade --timeout=60s");
    assert_eq!((left("replicaset"), left("pods")), (String::new(), String::new()));
}

/// patch with each type, as the task page "Update API Objects in Place Using kubectl patch" does it.
fn patched(k: &Kubectl) {
    k.ok("create deployment patch-demo --image=mini.local/echo:1.4 --replicas=0");
    let strategic = r#"{"spec":{"template":{"spec":{"containers":[{"name":"second","image":"shell:1"}]}}}}"#;
    k.says(&format!("patch deployment patch-demo --patch '{strategic}'"), "deployment.apps/patch-demo patched");
    let names = ".spec.template.spec.containers[*].name";
    assert_eq!(k.field("deployment/patch-demo", names), "second echo", "lists with a merge key are merged");
    let merge = strategic.replace("second", "only");
    k.says(&format!("patch deployment patch-demo --type merge -p '{merge}'"), "deployment.apps/patch-demo patched");
    assert_eq!(k.field("deployment/patch-demo", names), "only", "a merge patch replaces the list");
    let json = r#"[{"op":"replace","path":"/spec/template/spec/containers/0/name","value":"third"}]"#;
    k.says(&format!("patch deployment patch-demo --type=json -p '{json}'"), "deployment.apps/patch-demo patched");
    assert_eq!(k.field("deployment/patch-demo", names), "third");
    k.says(
        &format!("patch deployment patch-demo --type=json -p '{json}'"),
        "deployment.apps/patch-demo patched (no change)",
    );
    k.refuses(&format!("patch deployment patch-demo --type=json -p '{}'", json.replace("/0/", "/7/")), "");
    k.w.write("patch.yaml", "metadata: {labels: {from: file}}\n");
    k.says(
        "patch deployment patch-demo -p \"$(cat patch.yaml)\" --dry-run=server -o name",
        "deployment.apps/patch-demo",
    );
    assert_eq!(k.field("deployment/patch-demo", ".metadata.labels.from"), "");
    if k.minor >= 24 {
        let scale = r#"{"spec":{"replicas":1}}"#;
        k.says(
            &format!("patch deployment patch-demo --subresource=scale --type=merge -p '{scale}'"),
            "scale.autoscaling/patch-demo patched",
        );
        assert_eq!(k.field("deployment/patch-demo", ".spec.replicas"), "1");
        assert!(k.ok("get deployment patch-demo --subresource=status -o yaml").contains("kind: Deployment"));
    }
    k.refuses("patch deployment patch-demo --type=merge -p '{\"spec\":{\"replicas\":\"x\"}}'", "");
    k.ok("delete deployment patch-demo");
}

const APPLIED: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied, labels: {set: a}}\ndata: {a: '1', b: '2'}\n";

/// apply and its subcommands, diff.
fn applied(k: &Kubectl) {
    k.w.write("applied.yaml", APPLIED);
    let diff = k.refuses("diff -f applied.yaml", "+kind: ConfigMap");
    assert_eq!(diff.code, 1, "differences were found");
    k.says("apply -f applied.yaml", "configmap/applied created");
    k.says("apply -f applied.yaml", "configmap/applied unchanged");
    assert_eq!(k.w.run("kubectl diff -f applied.yaml").code, 0);
    k.ok("patch configmap applied -p '{\"data\":{\"c\":\"3\"}}'");
    k.w.write("applied.yaml", &APPLIED.replace("b: '2'", "d: '4'"));
    k.says("apply -f applied.yaml --dry-run=server", "configmap/applied configured (server dry run)");
    let diff = k.refuses("diff -f applied.yaml", "-  b: \"2\"");
    assert!(diff.code == 1 && diff.out.contains("+  d: \"4\"") && !diff.out.contains("-  c:"), "{}", diff.out);
    k.says("apply -f applied.yaml", "configmap/applied configured");
    assert_eq!(k.field("configmap/applied", ".data"), r#"{"a":"1","c":"3","d":"4"}"#, "what others set stays");
    let last = k.ok("apply view-last-applied configmap/applied");
    assert!(last.contains("d: \"4\"") && !last.contains("c:"), "{last}");
    k.w.ok("sed -i s/4/5/ applied.yaml");
    k.says("apply set-last-applied -f applied.yaml", "configmap/applied configured");
    let edited = k.edits("s/5/7/", "apply edit-last-applied configmap/applied");
    assert_eq!((edited.code, edited.out.trim()), (0, "configmap/applied edited"), "{}", edited.err);
    assert!(k.ok("apply view-last-applied configmap/applied -o json").contains("\"d\": \"7\""));
    k.says("delete -f applied.yaml", "configmap \"applied\" deleted*");
}

/// apply --server-side, as the page "Server-Side Apply" describes it.
fn applied_by_the_server(k: &Kubectl) {
    k.w.write("applied.yaml", APPLIED);
    k.says("apply --server-side -f applied.yaml --field-manager=one", "configmap/applied serverside-applied");
    k.w.ok("sed -i \"s/'1'/'9'/\" applied.yaml");
    let refused =
        k.refuses("apply --server-side -f applied.yaml --field-manager=two", "conflict with \"one\": .data.a");
    assert!(refused.err.contains("--force-conflicts"), "{}", refused.err);
    k.says(
        "apply --server-side -f applied.yaml --field-manager=two --force-conflicts",
        "configmap/applied serverside-applied",
    );
    assert_eq!(k.field("configmap/applied", ".data.a"), "9");
    assert_eq!(k.w.run("kubectl diff --server-side --field-manager=two -f applied.yaml").code, 0);
    k.ok("delete -f applied.yaml");
    // From client-side apply to the server's: the fields' manager moves, and nothing conflicts.
    k.w.write("applied.yaml", APPLIED);
    k.ok("apply -f applied.yaml");
    k.w.ok("sed -i 's/, b: .2.//' applied.yaml");
    let force = if k.minor < 26 { "--force-conflicts" } else { "" };
    k.says(&format!("apply --server-side -f applied.yaml {force}"), "configmap/applied serverside-applied");
    let rest = if k.minor < 26 { r#"{"a":"1","b":"2"}"# } else { r#"{"a":"1"}"# };
    assert_eq!(k.field("configmap/applied", ".data"), rest, "kubectl migrates field managers since v1.26");
    k.ok("delete -f applied.yaml");
}

/// apply --prune, wait.
fn pruned_and_waited_for(k: &Kubectl) {
    let list = if k.minor < 26 { "--prune-whitelist" } else { "--prune-allowlist" };
    let other = APPLIED.replace("name: applied", "name: applied-too");
    k.w.write("applied.yaml", &format!("{APPLIED}---\n{other}"));
    k.ok("apply -f applied.yaml");
    k.w.write("applied.yaml", APPLIED);
    let prune = format!("apply --prune -l set=a {list}=core/v1/ConfigMap -f applied.yaml");
    k.says(&prune, "configmap/applied unchanged\nconfigmap/applied-too pruned");
    k.refuses("get configmap applied-too", "not found");
    let mut waiting = Watch::start(&k.w, "kubectl wait --for=delete configmap/applied --timeout=60s -v=6");
    waiting.contains("watch=true");
    k.ok("delete configmap applied");
    if k.minor > 20 {
        waiting.contains("configmap/applied condition met");
    }
    drop(waiting);
    if k.minor >= 31 {
        let mut waiting = Watch::start(&k.w, "kubectl wait --for=create configmap/late --timeout=60s -v=6");
        waiting.contains("configmaps/late");
        k.ok("create configmap late");
        waiting.contains("configmap/late condition met");
        drop(waiting);
        k.ok("delete configmap late");
    }
    k.says("wait --for=condition=Ready node/mini --timeout=30s", "node/mini condition met");
    k.refuses("wait --for=condition=Ready=False node/mini --timeout=1s", "timed out waiting for the condition");
    if k.minor >= 23 {
        k.says(
            "wait --for=jsonpath='{.spec.clusterIP}'=10.96.0.1 service/kubernetes",
            "service/kubernetes condition met",
        );
    }
}

/// explain, from OpenAPI v2 (1.20) or v3.
fn explained(k: &Kubectl) {
    k.says(
        "explain pods",
        "*KIND:*Pod\nVERSION:*v1\n*DESCRIPTION:\n*Pod is a collection of containers that can run on a host.*",
    );
    k.says("explain deployments.spec.replicas", "*KIND:*Deployment\nVERSION:*v1\n*FIELD:*replicas*integer*");
    let all = k.ok("explain cronjob --recursive --api-version=batch/v1");
    assert!(
        all.contains("jobTemplate")
            && all.contains("terminationMessagePolicy")
            && all.contains("startingDeadlineSeconds"),
        "{all}"
    );
    k.refuses("explain pods.spec.nothing", "field \"nothing\" does not exist");
}

/// A shell and a pod whose first process says what it is told.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  containers:
  - name: shell
    image: shell:1
    command: [sh, -c, 'trap \"exit 0\" TERM; echo started; while :; do sleep 3600 & wait $!; done']
---
apiVersion: v1
kind: Pod
metadata: {name: parrot}
spec:
  restartPolicy: Never
  containers:
  - {name: parrot, image: 'shell:1', stdin: true, stdinOnce: true, command: [cat]}
";

/// run, logs, exec, cp, events, delete of a pod.
fn pods(k: &Kubectl) {
    k.apply(PODS);
    k.says(
        "wait --for=condition=Ready pod/shell pod/parrot --timeout=60s",
        "pod/shell condition met\npod/parrot condition met",
    );
    k.says(
        "run web --image=mini.local/echo:1.4 --port=8080 --expose --env=A=b --labels=app=web",
        "service/web created\npod/web created",
    );
    assert_eq!(k.field("service/web", ".spec.selector.app"), "web");
    k.says("run dry --image=x --dry-run=client -o yaml", "apiVersion: v1\nkind: Pod\n*run: dry*");
    let piped = k.w.ok("echo hello | kubectl run once --image=shell:1 -i --rm --restart=Never --quiet -- cat");
    like(&piped, "hello*");
    k.refuses("get pod once", "not found");
    assert_eq!(k.ok("logs shell"), "started\n");
    assert_eq!(k.ok("logs -l app=shell --tail=1 --prefix"), "[pod/shell/shell] started\n");
    k.says("logs shell -c shell --timestamps --since=1h", "20*T*Z started");
    k.refuses("logs shell --previous", "previous terminated container \"shell\" in pod \"shell\" not found");
    let mut followed = Watch::start(&k.w, "kubectl logs -f shell");
    followed.contains("started");
    drop(followed);
    assert_eq!(k.ok("exec shell -- sh -c 'echo out; echo err >&2' 2>/dev/null"), "out\n");
    assert_eq!(k.w.run("kubectl exec shell -c shell -- sh -c 'exit 5'").code, 5);
    assert_eq!(k.w.ok("echo typed | kubectl exec -i shell -- cat"), "typed\n");
    k.w.ok("mkdir -p tree/deep && echo leaf > tree/deep/leaf");
    k.ok("cp tree shell:/tmp/tree");
    assert_eq!(k.ok("exec shell -- cat /tmp/tree/deep/leaf"), "leaf\n");
    k.ok("cp default/shell:/tmp/tree back -c shell");
    assert_eq!(k.w.ok("cat back/deep/leaf"), "leaf\n");
    if k.minor >= 26 {
        k.says("events --for pod/shell --types=Normal", "LAST SEEN*TYPE*REASON*OBJECT*MESSAGE\n*Scheduled*Pod/shell*");
    }
    let events = k.ok("get events --field-selector involvedObject.name=shell --sort-by=.metadata.creationTimestamp");
    assert!(events.contains("Started") && events.contains("pod/shell"), "{events}");
    let dump = k.ok("cluster-info dump --namespaces=default");
    let logs = "==== START logs for container shell of pod default/shell ====\nstarted\n";
    assert!(dump.contains("\"kind\": \"NodeList\"") && dump.contains(logs), "nodes and logs: {dump}");
    assert!(k.ok("describe pod shell").contains("Successfully assigned default/shell to mini"));
}

/// attach, port-forward, proxy.
fn streams(k: &Kubectl) {
    let said = k.w.ok("echo polly | kubectl attach -i parrot 2>/dev/null");
    like(&said, "polly*");
    k.ok("wait --for=condition=Ready pod/web --timeout=60s");
    for target in ["pod/web", "service/web"] {
        let answer = k.w.ok(&format!(
            "coproc kubectl port-forward {target} :8080; read -r line <&${{COPROC[0]}}; port=${{line#*:}}; \
             curl -sS --max-time 10 127.0.0.1:${{port%% *}}; code=$?; kill $COPROC_PID; exit $code"
        ));
        assert!(answer.starts_with("CLIENT VALUES:"), "{target}: {answer}");
    }
    let answer = k.w.ok(
        "coproc kubectl proxy --port=0; read -r line <&${COPROC[0]}; url=http://${line##* }; \
         curl -sS --max-time 10 $url/api/v1/namespaces/default/pods/shell | grep -m1 kind; \
         curl -sS --max-time 10 $url/api/v1/namespaces/default/services/web/proxy/; code=$?; kill $COPROC_PID; exit $code",
    );
    assert!(answer.contains("\"kind\": \"Pod\"") && answer.contains("CLIENT VALUES:"), "{answer}");
}

/// debug: an ephemeral container, a copy of a pod, a node.
fn debugged(k: &Kubectl) {
    if k.minor >= 25 {
        k.ok("debug shell --image=shell:1 -c debugger --target=shell -- sh -c 'echo looked'");
        let code =
            "kubectl get pod shell -o jsonpath='{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}'";
        k.w.until("kubectl get pod shell -w", code, "0");
        assert_eq!(k.ok("logs shell -c debugger"), "looked\n");
    }
    k.ok("debug shell --copy-to=shell-copy --image=shell:1 -c debugger --share-processes -- sleep 600");
    k.ok("wait --for=condition=Ready pod/shell-copy --timeout=60s");
    assert_eq!(k.field("pod/shell-copy", ".spec.containers[*].name"), "shell debugger");
    assert!(k.ok("exec shell-copy -c debugger -- ps").contains("trap"), "it sees the other container's processes");
    let said = k.w.run("kubectl debug node/mini --image=shell:1 -- ls /host/etc");
    assert_eq!(said.code, 0, "{}", said.err);
    let text = format!("{}{}", said.out, said.err);
    let pod = text.split_whitespace().find(|word| word.starts_with("node-debugger-mini-")).expect("the pod is named");
    let phase = format!("kubectl get pod {pod} -o jsonpath='{{.status.phase}}'");
    k.w.until("kubectl get pods -w", &phase, "Succeeded");
    assert!(k.ok(&format!("logs {pod}")).contains("passwd"), "the node's files");
    k.ok(&format!("delete pod {pod} shell-copy --grace-period=0 --force"));
}

/// rollout in all its forms.
fn rollouts(k: &Kubectl) {
    k.ok("create deployment roll --image=mini.local/echo:1.4 --replicas=2");
    k.says("rollout status deployment/roll --timeout=60s", "*deployment \"roll\" successfully rolled out");
    k.ok("annotate deployment/roll kubernetes.io/change-cause='first'");
    k.says("rollout pause deployment/roll", "deployment.apps/roll paused");
    k.ok("set env deployment/roll STAGE=two");
    k.says("rollout resume deployment/roll", "deployment.apps/roll resumed");
    k.ok("rollout status deployment/roll --timeout=60s");
    k.says("rollout restart deployment/roll", "deployment.apps/roll restarted");
    k.ok("rollout status deployment/roll --timeout=60s");
    k.says("rollout history deployment/roll", "deployment.apps/roll*REVISION  CHANGE-CAUSE\n1*first\n2*\n3*");
    k.says(
        "rollout history deployment/roll --revision=2",
        "deployment.apps/roll with revision #2\nPod Template:\n*STAGE:*two*",
    );
    k.says("rollout undo deployment/roll --to-revision=1", "deployment.apps/roll rolled back");
    k.ok("rollout status deployment/roll --timeout=60s");
    assert_eq!(k.field("deployment/roll", ".spec.template.spec.containers[0].env"), "");
    k.ok("rollout pause deployment/roll");
    k.refuses("rollout undo deployment/roll", "you cannot rollback a paused deployment");
    k.ok("rollout resume deployment/roll");
}

/// set in all its forms.
fn set(k: &Kubectl) {
    k.says("set env deployment/roll COLOR=red --containers=echo", "deployment.apps/roll env updated");
    k.says("set env deployment/roll --list", "# Deployment roll, container echo\nCOLOR=red");
    k.says("set env deployment/roll --from=secret/made --prefix=MY_", "deployment.apps/roll env updated");
    k.says("set env deployment/roll COLOR-", "deployment.apps/roll env updated");
    assert_eq!(k.field("deployment/roll", ".spec.template.spec.containers[0].env[*].name"), "MY_PASSWORD");
    k.says(
        "set image deployment/roll echo=shell:1 --dry-run=server",
        "deployment.apps/roll image updated (server dry run)",
    );
    k.says("set image deployment/roll '*=shell:1' --dry-run=server -o name", "deployment.apps/roll");
    k.says(
        "set resources deployment/roll --limits=cpu=200m,memory=128Mi --requests=cpu=1m",
        "deployment.apps/roll resource requirements updated",
    );
    assert_eq!(k.field("deployment/roll", ".spec.template.spec.containers[0].resources.limits.memory"), "128Mi");
    k.says("set serviceaccount deployment/roll made", "deployment.apps/roll serviceaccount updated");
    k.says("set selector service/web 'app=roll'", "service/web selector updated");
    assert_eq!(k.field("service/web", ".spec.selector"), r#"{"app":"roll"}"#);
    k.says("set subject rolebinding made --user=jane", "rolebinding.rbac.authorization.k8s.io/made subjects updated");
    assert_eq!(k.field("rolebinding/made", ".subjects[*].name"), "made jane");
    k.ok("rollout status deployment/roll --timeout=60s");
}

/// scale, autoscale, expose.
fn scaled(k: &Kubectl) {
    k.says("scale deployment/roll --current-replicas=2 --replicas=1", "deployment.apps/roll scaled");
    k.refuses("scale deployment/roll --current-replicas=2 --replicas=3", "Expected replicas to be 2, was 1");
    let target = if k.minor < 34 { "--cpu-percent=80" } else { "--cpu=80%" };
    k.says(
        &format!("autoscale deployment roll --min=1 --max=3 {target}"),
        "horizontalpodautoscaler.autoscaling/roll autoscaled",
    );
    k.says("get hpa roll", "NAME*REFERENCE*TARGETS*MINPODS*MAXPODS*REPLICAS*AGE\nroll*Deployment/roll*/80%*1*3*");
    k.says("expose deployment roll --port=80 --target-port=8080 --name=rolled", "service/rolled exposed");
    assert_eq!(k.field("service/rolled", ".spec.ports[0].targetPort"), "8080");
    k.says("expose pod shell --port=1 --type=NodePort --dry-run=client", "service/shell exposed (dry run)");
    k.ok("delete hpa/roll service/rolled service/web");
}

/// auth, and acting as somebody else.
fn allowed(k: &Kubectl) {
    k.says("auth can-i create deployments --namespace default", "yes");
    k.says("auth can-i list pods --as=system:serviceaccount:default:made", "yes");
    let refused = k.w.fails("kubectl auth can-i delete pods --as=system:serviceaccount:default:made");
    assert_eq!((refused.code, refused.out.trim()), (1, "no"));
    let list = k.ok("auth can-i --list --as=system:serviceaccount:default:made");
    assert!(list.contains("Resources") && list.contains("deployments.apps") && list.contains("[get list]"), "{list}");
    k.refuses("get secrets --as=jane", "secrets is forbidden: User \"jane\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"");
    assert!(k.ok("get node mini --as=jane").contains("Ready"), "jane may get this node");
    k.w.write(
        "role.yaml",
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: made, namespace: default}\n\
         rules: [{apiGroups: [''], resources: [services], verbs: [get]}]\n",
    );
    k.says("auth reconcile -f role.yaml", "role.rbac.authorization.k8s.io/made reconciled*");
    k.says("auth can-i get services --as=system:serviceaccount:default:made", "yes");
    k.says("auth can-i list pods --as=system:serviceaccount:default:made", "yes");
    if k.minor >= 28 {
        k.says("auth whoami", "ATTRIBUTE*VALUE\nUsername*Groups*system:authenticated*");
    }
    k.ok("delete role/made rolebinding/made clusterrole/made clusterrolebinding/made --wait=false");
}

/// certificate, as the page "Issue a Certificate for a Kubernetes API Client Using a CertificateSigningRequest" does it.
fn certificates(k: &Kubectl) {
    k.w.ok("openssl req -new -newkey rsa:2048 -nodes -keyout user.key -out user.csr -subj /CN=certified 2>/dev/null");
    let request = k.w.ok("base64 -w0 < user.csr");
    for (name, verb, word) in [("granted", "approve", "approved"), ("refused", "deny", "denied")] {
        k.apply(&format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  \
             request: {request}\n  signerName: kubernetes.io/kube-apiserver-client\n  expirationSeconds: 86400\n  usages: [client auth]\n"
        ));
        k.says(
            &format!("get csr {name}"),
            "NAME*SIGNERNAME*REQUESTOR*CONDITION\n*kubernetes.io/kube-apiserver-client*Pending",
        );
        k.says(
            &format!("certificate {verb} {name}"),
            &format!("certificatesigningrequest.certificates.k8s.io/{name} {word}"),
        );
    }
    let issued = "kubectl get csr granted -o jsonpath='{.status.certificate}'";
    k.w.until("kubectl get csr granted -w", issued, "LS0t");
    k.w.ok(&format!("{issued} | base64 -d > user.crt"));
    // Debian's kubectl 1.20 crashes in `config set-credentials`: the Go that built it is too new for its JSON library.
    if k.minor > 20 {
        k.ok("config set-credentials certified --client-key=user.key --client-certificate=user.crt --embed-certs=true");
        k.refuses("get pods --user=certified", "User \"certified\" cannot list resource \"pods\"");
    }
    k.says("get csr refused -o jsonpath='{.status.conditions[0].type}{.status.certificate}'", "Denied");
    k.ok("delete csr granted refused");
}

/// top.
fn measured(k: &Kubectl) {
    k.says("top node", "NAME*CPU(cores)*CPU*MEMORY(bytes)*MEMORY*\nmini*%*Mi*%*");
    k.says("top pod shell --containers", "POD*NAME*CPU(cores)*MEMORY(bytes)*\nshell*shell*m*Mi*");
}

/// cordon, taint, drain, uncordon.
fn nodes(k: &Kubectl) {
    k.says("cordon mini", "node/mini cordoned");
    k.says("get node mini", "NAME*STATUS*\nmini*Ready,SchedulingDisabled*");
    k.says("uncordon mini", "node/mini uncordoned");
    k.says("taint nodes mini dedicated=special:NoSchedule", "node/mini tainted");
    assert_eq!(k.field("node/mini", ".spec.taints[*].key"), "dedicated");
    k.refuses(
        "taint nodes mini dedicated=other:NoSchedule",
        "already has dedicated taint(s) with same effect(s) and --overwrite is false",
    );
    k.says("taint nodes mini dedicated:NoSchedule-", "node/mini untainted");
    k.says("label node mini disk=ssd", "node/mini labeled");
    k.refuses("drain mini --ignore-daemonsets --timeout=20s", "--force");
    let drained = k.ok("drain mini --ignore-daemonsets --force --delete-emptydir-data --timeout=120s");
    like(&drained, "node/mini *cordoned\n*pod/shell evicted\n*node/mini *");
    k.refuses("get pod shell", "not found");
    k.ok("wait --for=condition=Available=False deployment/roll --timeout=30s");
    k.ok("uncordon mini");
    k.ok("rollout status deployment/roll --timeout=60s");
    k.ok("delete deployment roll");
}
