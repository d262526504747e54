//! Constants for the resources that components ask for.

use crate::api::kind::Gvr;

macro_rules! resources {
    ($($name:ident = $group:literal $version:literal $resource:literal;)*) => {
        $(#[doc = concat!("`", $resource, "` of `", $group, "/", $version, "`.")]
        pub const $name: Gvr = Gvr::new($group, $version, $resource);)*
    };
}

resources! {
    BINDINGS = "" "v1" "bindings";
    COMPONENT_STATUSES = "" "v1" "componentstatuses";
    CONFIG_MAPS = "" "v1" "configmaps";
    ENDPOINTS = "" "v1" "endpoints";
    EVENTS = "" "v1" "events";
    LIMIT_RANGES = "" "v1" "limitranges";
    NAMESPACES = "" "v1" "namespaces";
    NODES = "" "v1" "nodes";
    PERSISTENT_VOLUME_CLAIMS = "" "v1" "persistentvolumeclaims";
    PERSISTENT_VOLUMES = "" "v1" "persistentvolumes";
    POD_TEMPLATES = "" "v1" "podtemplates";
    PODS = "" "v1" "pods";
    REPLICATION_CONTROLLERS = "" "v1" "replicationcontrollers";
    RESOURCE_QUOTAS = "" "v1" "resourcequotas";
    SECRETS = "" "v1" "secrets";
    SERVICE_ACCOUNTS = "" "v1" "serviceaccounts";
    SERVICES = "" "v1" "services";
    CONTROLLER_REVISIONS = "apps" "v1" "controllerrevisions";
    DAEMON_SETS = "apps" "v1" "daemonsets";
    DEPLOYMENTS = "apps" "v1" "deployments";
    REPLICA_SETS = "apps" "v1" "replicasets";
    STATEFUL_SETS = "apps" "v1" "statefulsets";
    TOKEN_REVIEWS = "authentication.k8s.io" "v1" "tokenreviews";
    SELF_SUBJECT_REVIEWS = "authentication.k8s.io" "v1" "selfsubjectreviews";
    LOCAL_SUBJECT_ACCESS_REVIEWS = "authorization.k8s.io" "v1" "localsubjectaccessreviews";
    SELF_SUBJECT_ACCESS_REVIEWS = "authorization.k8s.io" "v1" "selfsubjectaccessreviews";
    SELF_SUBJECT_RULES_REVIEWS = "authorization.k8s.io" "v1" "selfsubjectrulesreviews";
    SUBJECT_ACCESS_REVIEWS = "authorization.k8s.io" "v1" "subjectaccessreviews";
    HORIZONTAL_POD_AUTOSCALERS = "autoscaling" "v2" "horizontalpodautoscalers";
    HORIZONTAL_POD_AUTOSCALERS_V1 = "autoscaling" "v1" "horizontalpodautoscalers";
    CRON_JOBS = "batch" "v1" "cronjobs";
    JOBS = "batch" "v1" "jobs";
    CERTIFICATE_SIGNING_REQUESTS = "certificates.k8s.io" "v1" "certificatesigningrequests";
    LEASES = "coordination.k8s.io" "v1" "leases";
    ENDPOINT_SLICES = "discovery.k8s.io" "v1" "endpointslices";
    EVENTS_V1 = "events.k8s.io" "v1" "events";
    FLOW_SCHEMAS = "flowcontrol.apiserver.k8s.io" "v1" "flowschemas";
    PRIORITY_LEVEL_CONFIGURATIONS = "flowcontrol.apiserver.k8s.io" "v1" "prioritylevelconfigurations";
    INGRESS_CLASSES = "networking.k8s.io" "v1" "ingressclasses";
    INGRESSES = "networking.k8s.io" "v1" "ingresses";
    IP_ADDRESSES = "networking.k8s.io" "v1" "ipaddresses";
    NETWORK_POLICIES = "networking.k8s.io" "v1" "networkpolicies";
    SERVICE_CIDRS = "networking.k8s.io" "v1" "servicecidrs";
    RUNTIME_CLASSES = "node.k8s.io" "v1" "runtimeclasses";
    POD_DISRUPTION_BUDGETS = "policy" "v1" "poddisruptionbudgets";
    CLUSTER_ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "clusterrolebindings";
    CLUSTER_ROLES = "rbac.authorization.k8s.io" "v1" "clusterroles";
    ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "rolebindings";
    ROLES = "rbac.authorization.k8s.io" "v1" "roles";
    DEVICE_CLASSES = "resource.k8s.io" "v1" "deviceclasses";
    RESOURCE_CLAIM_TEMPLATES = "resource.k8s.io" "v1" "resourceclaimtemplates";
    RESOURCE_CLAIMS = "resource.k8s.io" "v1" "resourceclaims";
    RESOURCE_SLICES = "resource.k8s.io" "v1" "resourceslices";
    PRIORITY_CLASSES = "scheduling.k8s.io" "v1" "priorityclasses";
    CSI_DRIVERS = "storage.k8s.io" "v1" "csidrivers";
    CSI_NODES = "storage.k8s.io" "v1" "csinodes";
    CSI_STORAGE_CAPACITIES = "storage.k8s.io" "v1" "csistoragecapacities";
    VOLUME_ATTACHMENTS = "storage.k8s.io" "v1" "volumeattachments";
    VOLUME_ATTRIBUTES_CLASSES = "storage.k8s.io" "v1" "volumeattributesclasses";
    MUTATING_WEBHOOK_CONFIGURATIONS = "admissionregistration.k8s.io" "v1" "mutatingwebhookconfigurations";
    VALIDATING_WEBHOOK_CONFIGURATIONS = "admissionregistration.k8s.io" "v1" "validatingwebhookconfigurations";
    VALIDATING_ADMISSION_POLICIES = "admissionregistration.k8s.io" "v1" "validatingadmissionpolicies";
    VALIDATING_ADMISSION_POLICY_BINDINGS = "admissionregistration.k8s.io" "v1" "validatingadmissionpolicybindings";
    API_SERVICES = "apiregistration.k8s.io" "v1" "apiservices";
    CUSTOM_RESOURCE_DEFINITIONS = "apiextensions.k8s.io" "v1" "customresourcedefinitions";
    STORAGE_CLASSES = "storage.k8s.io" "v1" "storageclasses";
}
