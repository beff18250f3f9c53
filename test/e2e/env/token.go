package env

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// ReplaceToken puts another token in the place of the installation's, as people do before
// one ends: in the scaler's file, and in the agents' Secret if pods have it. The service takes
// both until the old one, which it gives, is removed there.
func (in *Installation) ReplaceToken(ctx context.Context) (old string, err error) {
	old = in.token
	in.tokens++
	in.token = fmt.Sprintf("%s-%d", in.env.Service.secret(in.Name), in.tokens)
	fail := func(err error) (string, error) { return old, fmt.Errorf("replace the pool's token: %w", err) }
	if err := in.env.Service.AddToken(azuredevopstest.Token{Secret: in.token, Identity: in.Name, Rights: azuredevopstest.RightsManage}); err != nil {
		return fail(err)
	}
	if err := in.writeToken(); err != nil {
		return fail(err)
	}
	if in.env.options.Registration == registrationJIT {
		return old, nil
	}
	secrets := in.env.Admin.CoreV1().Secrets(in.AgentsNamespace)
	if _, err := secrets.Update(ctx, in.agentToken(), metav1.UpdateOptions{}); err != nil {
		return fail(err)
	}
	return old, nil
}

// RevokeToken has the service take the installation's token no more, before there is another.
func (in *Installation) RevokeToken() { in.env.Service.RemoveToken(in.token) }

// tokenFile is where the scaler has its token.
func (in *Installation) tokenFile() string {
	return filepath.Join(in.env.private, "pool-token-"+in.Name)
}

// writeToken puts the token where the scaler has it. The file is replaced as a whole, as the
// kubelet does with a mounted one.
func (in *Installation) writeToken() error {
	next := in.tokenFile() + ".next"
	if err := os.WriteFile(next, []byte(in.token), 0o600); err != nil {
		return err
	}
	return os.Rename(next, in.tokenFile())
}

// agentToken is the Secret that an administrator makes for the pods.
func (in *Installation) agentToken() *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: TokenSecret, Namespace: in.AgentsNamespace}, StringData: map[string]string{tokenKey: in.token},
	}
}
