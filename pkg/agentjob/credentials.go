package agentjob

import (
	"cmp"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The files that an agent runs on, as its own configuration leaves them. They are the
// keys of the build's Secret.
const (
	fileAgent       = ".agent"
	fileCredentials = ".credentials"
	fileKey         = ".credentials_rsaparams"
)

// KeyBits is the size of an agent's RSA key.
const KeyBits = 2048

// byteOrderMark begins the files that the agent writes for itself.
const byteOrderMark = "\ufeff"

// AgentCredentials are what one agent signs in with. It is good for that agent's
// registration alone, and for nothing once that is gone. It prints without its key.
type AgentCredentials struct {
	AgentID          int
	ClientID         string
	AuthorizationURL string
	Key              *rsa.PrivateKey
}

// String tells whose credentials they are.
func (c AgentCredentials) String() string {
	return "credentials of agent " + strconv.Itoa(c.AgentID) + ", key [redacted]"
}

// Format keeps the key out of every print.
func (c AgentCredentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// MarshalJSON keeps it out of every encoding, logs included.
func (c AgentCredentials) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// Secret makes the Secret of one build: the three files that the agent program's own
// configuration would have written. The Job must have its UID: the Secret goes with the Job.
func Secret(s Settings, job *batchv1.Job, credentials AgentCredentials) (*corev1.Secret, error) {
	key, err := keyParametersOf(credentials.Key)
	if err != nil {
		return nil, fmt.Errorf("job %s/%s: the agent's key: %w", job.Namespace, job.Name, err)
	}
	secret := &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Name: job.Name, Namespace: job.Namespace, Labels: ownLabels(job),
			OwnerReferences: []metav1.OwnerReference{ownedBy(job)},
		},
		Immutable: new(true),
		Type:      corev1.SecretTypeOpaque,
		Data:      map[string][]byte{},
	}
	secret.Labels[LabelJobUID] = string(job.UID)
	endpoint, err := tokenEndpoint(s.Identity.URL, credentials.AuthorizationURL)
	if err != nil {
		return nil, fmt.Errorf("job %s/%s: the agent's sign-in: %w", job.Namespace, job.Name, err)
	}
	for name, content := range map[string]any{
		fileAgent: struct {
			AcceptTeeEula bool   `json:"acceptTeeEula"`
			AgentID       int    `json:"agentId"`
			AgentName     string `json:"agentName"`
			PoolID        int    `json:"poolId"`
			PoolName      string `json:"poolName"`
			ServerURL     string `json:"serverUrl"`
			WorkFolder    string `json:"workFolder"`
		}{true, credentials.AgentID, job.Name, s.Identity.Pool.ID, s.Identity.Pool.Name, s.Identity.URL, cmp.Or(s.WorkDir, defaultWorkDir)},
		fileCredentials: map[string]any{"scheme": "OAuth", "data": map[string]string{
			"clientId": credentials.ClientID, "authorizationUrl": credentials.AuthorizationURL, "oauthEndpointUrl": endpoint,
		}},
		fileKey: key,
	} {
		text, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("job %s/%s: file %s: %w", job.Namespace, job.Name, name, err)
		}
		secret.Data[name] = append([]byte(byteOrderMark), text...)
	}
	return secret, nil
}

// tokenEndpoint is where the agent gets its tokens. In the cloud that is the authorization
// URL. A server of one's own names there its public address, which may not be the one that
// leads to it from here: as in the agent's own ConfigurationManager, scheme, host and port are
// then those of the collection's URL, and only the audience of what it signs stays as it was.
func tokenEndpoint(collection, authorization string) (string, error) {
	server, err := url.Parse(collection)
	if err != nil {
		return "", err
	}
	endpoint, err := url.Parse(authorization)
	if err != nil {
		return "", err
	}
	if host := strings.ToLower(server.Hostname()); host == "dev.azure.com" || strings.HasSuffix(host, ".visualstudio.com") {
		return authorization, nil
	}
	endpoint.Scheme, endpoint.Host = server.Scheme, server.Host
	return endpoint.String(), nil
}

// keyParameters is the content of the key's file: RSAParameters of .NET, which imports each
// number as it stands, base64 and big-endian, filled up with zeros on the left.
type keyParameters struct {
	ContainerName string `json:"ContainerName"`
	UseCng        bool   `json:"UseCng"`
	D             string `json:"d"`
	DP            string `json:"dp"`
	DQ            string `json:"dq"`
	Exponent      string `json:"exponent"`
	InverseQ      string `json:"inverseQ"`
	Modulus       string `json:"modulus"`
	P             string `json:"p"`
	Q             string `json:"q"`
}

func keyParametersOf(key *rsa.PrivateKey) (keyParameters, error) {
	if key == nil || key.N.BitLen() != KeyBits || len(key.Primes) != 2 {
		return keyParameters{}, errors.New("want one of 2048 bits with two primes")
	}
	const whole, half = KeyBits / 8, KeyBits / 16
	number := func(n *big.Int, width int) string {
		return base64.StdEncoding.EncodeToString(n.FillBytes(make([]byte, width)))
	}
	key.Precompute()
	return keyParameters{
		D:        number(key.D, whole),
		DP:       number(key.Precomputed.Dp, half),
		DQ:       number(key.Precomputed.Dq, half),
		Exponent: base64.StdEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
		InverseQ: number(key.Precomputed.Qinv, half),
		Modulus:  number(key.N, whole),
		P:        number(key.Primes[0], half),
		Q:        number(key.Primes[1], half),
	}, nil
}
