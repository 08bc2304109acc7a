package route

import "testing"

// TestServiceConfigMerge: the user's is kept, with our policy and an exception for our streams.
func TestServiceConfigMerge(t *testing.T) {
	t.Parallel()
	got, err := ServiceConfig(
		`{"methodConfig": [{"name": [{}], "timeout": "1s"}], "healthCheckConfig": {"serviceName": "x"}}`,
	)
	const want = `{"healthCheckConfig":{"serviceName":"x"},"loadBalancingConfig":[{"understudy":{}}],` +
		`"methodConfig":[{"name":[{}],"timeout":"1s"},{"name":[{"service":"understudy.v1.Connection"}]}]}`
	if err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
}
