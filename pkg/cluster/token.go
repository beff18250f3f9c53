package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// TokenSecretConfig is what a TokenSecret is made from.
type TokenSecretConfig struct {
	Client    kubernetes.Interface
	Namespace string // Of the agents.
	Name, Key string
	// Owner is the installation's id, which tells its Secret from one that an administrator
	// or another installation has made.
	Owner       string
	CallTimeout time.Duration // DefaultCallTimeout if 0.
}

// TokenSecret is the Secret in which the scaler keeps the token that pods register and
// remove their agents with, where it signs in with one that ends and is renewed. It touches
// no Secret that is not its own.
type TokenSecret struct{ config TokenSecretConfig }

// NewTokenSecret calls nothing.
func NewTokenSecret(config TokenSecretConfig) (*TokenSecret, error) {
	wrong := checkPlace(config.Client, config.Namespace)
	if config.Name == "" || config.Key == "" || config.Owner == "" {
		wrong = append(wrong, errors.New("cluster: the Secret of the agents' token needs a name, a key and an owner"))
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	if config.CallTimeout <= 0 {
		config.CallTimeout = DefaultCallTimeout
	}
	return &TokenSecret{config: config}, nil
}

// String gives the Secret's namespace and name.
func (s *TokenSecret) String() string { return s.config.Namespace + "/" + s.config.Name }

// Keep sees to it that the token is in the Secret, and gives the end of the one that is there
// then, and whether it had to write. One that ends later was put there by another replica of the
// scaler and stays, unless this one is new: so each writes only what it has renewed, and they do
// not write in turns. The error is ErrNameTaken if the Secret is not the scaler's own.
func (s *TokenSecret) Keep(ctx context.Context, token string, ends time.Time, renewed bool) (until time.Time, wrote bool, err error) {
	// Twice: once more after somebody else was quicker.
	for range 2 {
		until, wrote, err = s.keep(ctx, token, ends, renewed)
		if !errors.Is(err, ErrStale) {
			break
		}
	}
	return until, wrote, err
}

func (s *TokenSecret) keep(ctx context.Context, token string, ends time.Time, renewed bool) (until time.Time, wrote bool, err error) {
	wanted := s.object(token, ends)
	found, err := s.get(ctx)
	if errors.Is(err, ErrNotFound) {
		err := s.bounded(ctx, func(ctx context.Context) error {
			_, err := s.secrets().Create(ctx, wanted, metav1.CreateOptions{FieldManager: component})
			return err
		})
		if apierrors.IsAlreadyExists(err) {
			return time.Time{}, false, &Error{Op: "create", Object: s.objectName(), Kind: ErrStale}
		}
		return ends, err == nil, fail("create", kindSecret, s.config.Namespace, s.config.Name, err)
	}
	if err != nil {
		return time.Time{}, false, err
	}
	if !isKeptBy(found, s.config.Owner) {
		return time.Time{}, false, &Error{Op: "update", Object: s.objectName(), Kind: ErrNameTaken, Remedy: remedyForeignToken(found)}
	}
	there := tokenEnds(found)
	holds := len(found.Data[s.config.Key]) > 0
	same := bytes.Equal(found.Data[s.config.Key], wanted.Data[s.config.Key]) && there.Equal(tokenEnds(wanted))
	if same || holds && !renewed && there.After(ends) {
		return there, false, nil
	}
	// The version in the update has the API server refuse it if the Secret has changed.
	wanted.ResourceVersion, wanted.UID = found.ResourceVersion, found.UID
	err = s.bounded(ctx, func(ctx context.Context) error {
		_, err := s.secrets().Update(ctx, wanted, metav1.UpdateOptions{FieldManager: component})
		return err
	})
	if err != nil {
		return there, false, fail("update", kindSecret, s.config.Namespace, s.config.Name, err)
	}
	return ends, true, nil
}

// Remove deletes the Secret if it is the scaler's own, and reports whether there was one.
func (s *TokenSecret) Remove(ctx context.Context) (bool, error) {
	found, err := s.get(ctx)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil || !isKeptBy(found, s.config.Owner) {
		return false, err
	}
	err = s.bounded(ctx, func(ctx context.Context) error {
		return s.secrets().Delete(ctx, s.config.Name, metav1.DeleteOptions{Preconditions: preconditions(found.UID, "")})
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return false, nil // Gone, or another one by now.
	}
	return err == nil, fail("delete", kindSecret, s.config.Namespace, s.config.Name, err)
}

func (s *TokenSecret) get(ctx context.Context) (found *corev1.Secret, err error) {
	err = s.bounded(ctx, func(ctx context.Context) (err error) {
		found, err = s.secrets().Get(ctx, s.config.Name, metav1.GetOptions{})
		return err
	})
	return found, fail("get", kindSecret, s.config.Namespace, s.config.Name, err)
}

func (s *TokenSecret) secrets() typedcorev1.SecretInterface {
	return s.config.Client.CoreV1().Secrets(s.config.Namespace)
}

// bounded makes one call within its limit.
func (s *TokenSecret) bounded(ctx context.Context, do func(context.Context) error) error {
	return within(ctx, s.config.CallTimeout, do)
}

func (s *TokenSecret) objectName() string {
	return objectName(kindSecret, s.config.Namespace, s.config.Name)
}

// object is the Secret as it is to be.
func (s *TokenSecret) object(token string, ends time.Time) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: s.config.Name, Namespace: s.config.Namespace,
			Labels: map[string]string{
				agentjob.LabelManagedBy: agentjob.ManagedBy,
				agentjob.LabelName:      agentjob.AgentName,
				agentjob.LabelInstance:  s.config.Owner,
			},
			Annotations: map[string]string{agentjob.AnnotationTokenEnds: ends.UTC().Format(time.RFC3339)},
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{s.config.Key: []byte(token)},
	}
}

// isKept reports whether a scaler, of whatever installation, has put the token there.
func isKept(secret *corev1.Secret) bool {
	return secret.Labels[agentjob.LabelManagedBy] == agentjob.ManagedBy && secret.Annotations[agentjob.AnnotationTokenEnds] != ""
}

func isKeptBy(secret *corev1.Secret, owner string) bool {
	return isKept(secret) && secret.Labels[agentjob.LabelInstance] == owner
}

// tokenEnds is zero where the Secret does not say, which is before every other end.
func tokenEnds(secret *corev1.Secret) time.Time {
	ends, err := time.Parse(time.RFC3339, secret.Annotations[agentjob.AnnotationTokenEnds])
	if err != nil {
		return time.Time{}
	}
	return ends
}

// remedyForeignToken says what to do about a Secret that the scaler would have to overwrite.
func remedyForeignToken(secret *corev1.Secret) string {
	by := "by somebody else, such as an administrator for a personal access token"
	if isKept(secret) {
		by = "by another installation of the scaler"
	}
	return fmt.Sprintf("it was made %s, and is not overwritten: kubectl delete secret %s --namespace %s, if nothing else needs it; or name another in AZP_AGENT_TOKEN_SECRET, and in the scaler's Role",
		by, secret.Name, secret.Namespace)
}

// checkToken looks whether pods find the token that they register with.
func (c *Cluster) checkToken(ctx context.Context, in Installation) []Problem {
	if in.TokenSecret == "" {
		return nil
	}
	var secret *corev1.Secret
	err := c.bounded(ctx, func(ctx context.Context) (err error) {
		secret, err = c.client.CoreV1().Secrets(c.config.Namespace).Get(ctx, in.TokenSecret, metav1.GetOptions{})
		return err
	})
	problem := Problem{
		Where: "namespace " + c.config.Namespace, Fatal: true, Reason: agentpool.ReasonMissingObject,
		Remedy: fmt.Sprintf("kubectl create secret generic %s --namespace %s --from-file=%s=FILE", in.TokenSecret, c.config.Namespace, in.TokenKey),
	}
	kept := in.TokenOwner != ""
	switch {
	case apierrors.IsNotFound(err) && kept:
		return nil // The scaler makes it when it runs.
	case apierrors.IsNotFound(err):
		problem.What = fmt.Sprintf("the Secret %q with the agents' token does not exist", in.TokenSecret)
	case apierrors.IsForbidden(err):
		return nil // The missing right has been told already.
	case err != nil:
		problem.What = fmt.Sprintf("the Secret %q can't be read: %v", in.TokenSecret, err)
		problem.Remedy, problem.Fatal, problem.Reason = "check that the API server is reachable", false, ReasonOf(fail("get", kindSecret, c.config.Namespace, in.TokenSecret, err))
	case kept && isKeptBy(secret, in.TokenOwner):
		return nil // What is in it is the business of the scaler that runs.
	case kept:
		problem.What, problem.Remedy = fmt.Sprintf("the scaler can't keep the agents' token in the Secret %q", in.TokenSecret), remedyForeignToken(secret)
	case isKept(secret):
		problem.What = fmt.Sprintf("the Secret %q holds a token that a scaler put there which signed in by Microsoft Entra, and nobody renews it", in.TokenSecret)
		problem.Remedy = fmt.Sprintf("kubectl delete secret %s --namespace %s, and then %s", in.TokenSecret, c.config.Namespace, problem.Remedy)
	case len(secret.Data[in.TokenKey]) == 0:
		problem.What = fmt.Sprintf("the Secret %q has no key %q, or an empty one", in.TokenSecret, in.TokenKey)
	default:
		return nil
	}
	return []Problem{problem}
}
