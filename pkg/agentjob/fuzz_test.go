package agentjob_test

import (
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// FuzzParseJobName holds that only what JobName writes is taken for a Job of ours, whoever has
// named it: agents of other names are in the same pool, and are never touched.
func FuzzParseJobName(f *testing.F) {
	const instance = "abcdefgh"
	for _, seed := range []string{"azp-abcdefgh-5-42-0", "azp-abcdefgh-5-42-00", "azp-abcdefgh-5-42", "azp-abcdefgi-5-42-0", "azp-abcdefgh--5-42-0", "azp-placeholder-abcdefgh-java-xyz123", "AZP-abcdefgh-5-42-0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		pool, request, attempt, ok := agentjob.ParseJobName(instance, name)
		if ok != agentjob.IsJobName(name) && ok {
			t.Errorf("%q is a Job of this installation and of none", name)
		}
		if !ok {
			return
		}
		if again := agentjob.JobName(instance, pool, request, attempt); again != name {
			t.Errorf("%q is read as %d, %d, %d, which is written %q", name, pool, request, attempt, again)
		}
		if agentjob.IsPlaceholderOf(instance, "java", name) {
			t.Errorf("%q is a Job and a placeholder", name)
		}
	})
}
