package manifests

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const greeter = "../../examples/greeter/kubernetes/greeter.yaml"

// TestManifests: each manifest is what Kubernetes takes, and its parts fit each other.
func TestManifests(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile(greeter)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults(file) {
		t.Error(fault)
	}
}

// TestManifestsBite: each of these changes to the manifest is found.
func TestManifestsBite(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile(greeter)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, found string }{
		{"serviceName:", "servicename:", "servicename"},
		{"  replicas: 3\n", "  replicas: 3\n  replicas: 3\n", "replicas"},
		{"kind: ConfigMap", "kind: Configmap", "isn't checked yet"},
		{"periodSeconds: 2", "periodSeconds: soon", "periodSeconds"},
		{"  clusterIP: None\n", "", "headless"},
		{"  publishNotReadyAddresses: true\n", "", "not ready"},
		{"  selector:\n    app: greeter", "  selector:\n    app: other", "selects no pods"},
		{"      port: 8444", "      port: 8445", "port 8445"},
		{"serviceName: greeter", "serviceName: other", "no Service"},
		{"maxUnavailable: 1", "maxUnavailable: 2", "disruption budget"},
		{"    matchLabels:\n      app: greeter\n---", "    matchLabels:\n      app: other\n---", "disruption budget"},
		{"  replicas: 3", "  replicas: 2", "replicas"},
		{"            grpc:\n              port: 8081", "            grpc:\n              port: 8443", "readiness"},
		{"            tcpSocket:\n              port: health", "            grpc:\n              port: 8081",
			"liveness"},
		{"              port: health", "              port: healthz", "liveness"},
		{"--name=$(POD_NAME)", "--name=greeter", "name"},
		{"--health=0.0.0.0:8081", "--health=0.0.0.0:8082", "--health"},
		{"--peers=0.0.0.0:8444", "--peers=0.0.0.0:0", "--peers"},
		{"--advertise=$(POD_NAME).greeter.", "--advertise=$(POD_NAME).other.", "--advertise"},
		{"svc.cluster.local:8443", "svc.cluster.local:8444", "--advertise"},
		{"--etcd=$(ETCD)", "--etcd=$(ETCDS)", "$(ETCDS)"},
		{"key: etcd", "key: etcds", "ConfigMap"},
		{"terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 1", "grace"},
		{"mountPath: /etc/greeter/tls", "mountPath: /etc/other/tls", "--tls"},
		{"        - name: tls\n          secret:", "        - name: others\n          secret:", "volume"},
		{"              memory: 1Gi\n          securityContext",
			"              memory: 1Gi\n              cpu: \"1\"\n          securityContext", "CPU"},
	} {
		changed := strings.Replace(string(file), c.old, c.new, 1)
		if changed == string(file) {
			t.Errorf("%q isn't in the manifest any more", c.old)
			continue
		}
		found := faults([]byte(changed))
		if !slices.ContainsFunc(found, func(err error) bool { return strings.Contains(err.Error(), c.found) }) {
			t.Errorf("with %q for %q nothing is said of %q: %v", c.new, c.old, c.found, found)
		}
	}
}

// faults are what is wrong with a file.
func faults(file []byte) (found []error) {
	m, err := Decode(file)
	if err != nil {
		return []error{err}
	}
	say := func(format string, args ...any) { found = append(found, fmt.Errorf(format, args...)) }
	if len(m.StatefulSets) == 0 {
		say("there is no StatefulSet")
	}
	for _, set := range m.StatefulSets {
		pod := set.Spec.Template
		if n := set.Spec.Replicas; n == nil || *n < 3 {
			say("%s has fewer than 3 replicas", set.Name)
		}
		if !selects(set.Spec.Selector, pod.Labels) {
			say("%s selects no pods of its own", set.Name)
		}
		if g := pod.Spec.TerminationGracePeriodSeconds; g == nil || *g < 10 {
			say("%s has a grace period below 10 s", set.Name)
		}
		guarded := false
		for _, b := range m.Budgets {
			guarded = guarded || selects(b.Spec.Selector, pod.Labels) && b.Spec.MaxUnavailable != nil &&
				*b.Spec.MaxUnavailable == intstr.FromInt(1)
		}
		if !guarded {
			say("%s has no disruption budget of 1", set.Name)
		}
		service := m.Services[set.Spec.ServiceName]
		if service == nil {
			say("%s has no Service %q", set.Name, set.Spec.ServiceName)
			continue
		}
		if service.Spec.ClusterIP != corev1.ClusterIPNone {
			say("Service %s isn't headless", service.Name)
		}
		if !service.Spec.PublishNotReadyAddresses {
			say("Service %s doesn't publish pods that are not ready: they could never join", service.Name)
		}
		if !selects(&metav1.LabelSelector{MatchLabels: service.Spec.Selector}, pod.Labels) {
			say("Service %s selects no pods", service.Name)
		}
		for _, c := range pod.Spec.Containers {
			for _, p := range service.Spec.Ports {
				if port(c, intstr.FromInt32(p.Port)) == 0 {
					say("no container has the Service's port %d", p.Port)
				}
			}
			found = append(found, container(m, service.Name, pod.Spec, c)...)
		}
	}
	return found
}

// container checks one that runs a replica.
func container(m *Manifests, service string, pod corev1.PodSpec, c corev1.Container) (found []error) {
	say := func(format string, args ...any) { found = append(found, fmt.Errorf(format, args...)) }
	args := map[string]string{}
	for _, a := range c.Args {
		name, value, _ := strings.Cut(a, "=")
		args[name] = value
		for _, v := range regexp.MustCompile(`\$\([^)]*\)`).FindAllString(value, -1) {
			if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return "$("+e.Name+")" == v }) {
				say("%s: nothing sets %s", a, v)
			}
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil || e.ValueFrom.ConfigMapKeyRef == nil {
			continue
		}
		ref := e.ValueFrom.ConfigMapKeyRef
		if cm := m.ConfigMaps[ref.Name]; cm == nil || cm.Data[ref.Key] == "" {
			say("%s: no ConfigMap %q has %q", e.Name, ref.Name, ref.Key)
		}
	}
	if args["--name"] != "$(POD_NAME)" {
		say("the replica's name isn't the pod's, which outlives it")
	}
	for arg, name := range map[string]string{"--listen": "grpc", "--peers": "peers", "--health": "health"} {
		if want := fmt.Sprintf("0.0.0.0:%d", port(c, intstr.FromString(name))); args[arg] != want {
			say("%s is %q, the port %s needs %q", arg, args[arg], name, want)
		}
	}
	want := fmt.Sprintf("$(POD_NAME).%s.$(NAMESPACE).svc.cluster.local:%d", service, port(c, intstr.FromString("grpc")))
	if args["--advertise"] != want {
		say("--advertise is %q, a pod of this Service is %q", args["--advertise"], want)
	}
	if p := c.ReadinessProbe; p == nil || p.GRPC == nil || p.GRPC.Port != port(c, intstr.FromString("health")) ||
		p.GRPC.Service != nil {
		say("the readiness probe doesn't ask the health port of the whole replica")
	}
	if p := c.LivenessProbe; p == nil || p.TCPSocket == nil || port(c, p.TCPSocket.Port) == 0 {
		say("the liveness probe doesn't just connect to a port: it would kill replicas that wait for others")
	}
	for _, arg := range []string{"--tls", "--etcd-tls"} {
		if !slices.ContainsFunc(c.VolumeMounts, func(v corev1.VolumeMount) bool { return v.MountPath == args[arg] }) {
			say("%s: nothing is mounted at %q", arg, args[arg])
		}
	}
	for _, v := range c.VolumeMounts {
		if !slices.ContainsFunc(pod.Volumes, func(w corev1.Volume) bool {
			return w.Name == v.Name && w.Secret != nil
		}) {
			say("%s: there is no volume %q", v.MountPath, v.Name)
		}
	}
	if !c.Resources.Limits.Cpu().IsZero() {
		say("the CPU is limited: a throttled replica is taken for dead")
	}
	if c.Resources.Limits.Memory().IsZero() || !c.Resources.Limits.Memory().Equal(*c.Resources.Requests.Memory()) {
		say("the memory isn't reserved")
	}
	return found
}

// port is a container's port, by its number or name; 0 without one.
func port(c corev1.Container, which intstr.IntOrString) int32 {
	for _, p := range c.Ports {
		if p.Name == which.StrVal && which.Type == intstr.String || p.ContainerPort == which.IntVal &&
			which.Type == intstr.Int {
			return p.ContainerPort
		}
	}
	return 0
}

// selects says whether a selector that isn't empty matches.
func selects(s *metav1.LabelSelector, of map[string]string) bool {
	if s == nil || len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return false
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(of))
}
