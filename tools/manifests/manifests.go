// Package manifests checks the Kubernetes manifests of the examples: they are decoded strictly into
// the types of k8s.io/api, and what one part says of another has to be true. It is a module of its
// own, so that nobody else requires Kubernetes; its test is run by make test.
package manifests

import (
	"bytes"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Manifests are what a file declares, by name.
type Manifests struct {
	ConfigMaps   map[string]*corev1.ConfigMap
	Services     map[string]*corev1.Service
	Budgets      map[string]*policyv1.PodDisruptionBudget
	StatefulSets map[string]*appsv1.StatefulSet
}

// Decode reads a file of YAML documents as Kubernetes' API server would, and more strictly: a field
// that its type doesn't have, or has in another case, one that is given twice, and a kind that
// isn't checked here are errors.
func Decode(file []byte) (*Manifests, error) {
	m := &Manifests{
		map[string]*corev1.ConfigMap{}, map[string]*corev1.Service{}, map[string]*policyv1.PodDisruptionBudget{},
		map[string]*appsv1.StatefulSet{},
	}
	var errs []error
	for i, doc := range bytes.Split(file, []byte("\n---\n")) {
		if err := m.add(doc); err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", i+1, err))
		}
	}
	return m, errors.Join(errs...)
}

func (m *Manifests) add(doc []byte) error {
	b, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	var kind metav1.TypeMeta
	if err := kjson.UnmarshalCaseSensitivePreserveInts(b, &kind); err != nil {
		return err
	}
	switch kind.APIVersion + " " + kind.Kind {
	case "v1 ConfigMap":
		return into(m.ConfigMaps, b, func(c *corev1.ConfigMap) string { return c.Name })
	case "v1 Service":
		return into(m.Services, b, func(s *corev1.Service) string { return s.Name })
	case "policy/v1 PodDisruptionBudget":
		return into(m.Budgets, b, func(p *policyv1.PodDisruptionBudget) string { return p.Name })
	case "apps/v1 StatefulSet":
		return into(m.StatefulSets, b, func(s *appsv1.StatefulSet) string { return s.Name })
	}
	return fmt.Errorf("kind %s of %s isn't checked yet: add it", kind.Kind, kind.APIVersion)
}

func into[T any](all map[string]*T, b []byte, name func(*T) string) error {
	v := new(T)
	strict, err := kjson.UnmarshalStrict(b, v)
	if err := errors.Join(append(strict, err)...); err != nil {
		return err
	}
	if all[name(v)] != nil {
		return fmt.Errorf("%q is declared twice", name(v))
	}
	all[name(v)] = v
	return nil
}
