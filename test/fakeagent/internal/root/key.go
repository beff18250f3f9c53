package root

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
)

// keyBits is the size of an agent's key.
const keyBits = 2048

// keyParameters is the content of .credentials_rsaparams: .NET's RSAParameters,
// base64, big-endian, padded on the left to the key's full width.
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

// CreateKey makes the agent's key pair and writes it, readable to its owner alone.
func (d Dir) CreateKey() (*rsa.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("make the agent's key: %w", err)
	}
	half := keyBits / 16
	parameters := keyParameters{
		D:        encode(key.D, 2*half),
		DP:       encode(key.Precomputed.Dp, half),
		DQ:       encode(key.Precomputed.Dq, half),
		Exponent: PublicExponent(&key.PublicKey),
		InverseQ: encode(key.Precomputed.Qinv, half),
		Modulus:  PublicModulus(&key.PublicKey),
		P:        encode(key.Primes[0], half),
		Q:        encode(key.Primes[1], half),
	}
	return key, d.save(fileKey, parameters, 0o600)
}

// Key reads the agent's key pair and checks that its parts belong together.
func (d Dir) Key() (*rsa.PrivateKey, error) {
	parameters, err := load[keyParameters](d, fileKey)
	if err != nil {
		return nil, err
	}
	half := keyBits / 16
	var problems []error
	number := func(name, text string, width int) *big.Int {
		raw, err := base64.StdEncoding.DecodeString(text)
		if err == nil && len(raw) != width {
			err = fmt.Errorf("is %d bytes long, not %d", len(raw), width)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s in %s: %w", name, d.Path(fileKey), err))
		}
		return new(big.Int).SetBytes(raw)
	}
	exponent, err := base64.StdEncoding.DecodeString(parameters.Exponent)
	if err != nil || len(exponent) == 0 || len(exponent) > 4 {
		problems = append(problems, fmt.Errorf("exponent in %s is not base64 of one to four bytes", d.Path(fileKey)))
	}
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{
			N: number("modulus", parameters.Modulus, 2*half),
			E: int(new(big.Int).SetBytes(exponent).Int64()),
		},
		D: number("d", parameters.D, 2*half),
		Primes: []*big.Int{
			number("p", parameters.P, half),
			number("q", parameters.Q, half),
		},
	}
	// .NET imports these three as they are, so they have to be there and right.
	dp := number("dp", parameters.DP, half)
	dq := number("dq", parameters.DQ, half)
	inverseQ := number("inverseQ", parameters.InverseQ, half)
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	if err := key.Validate(); err != nil {
		return nil, fmt.Errorf("the key in %s: %w", d.Path(fileKey), err)
	}
	key.Precompute()
	if dp.Cmp(key.Precomputed.Dp) != 0 || dq.Cmp(key.Precomputed.Dq) != 0 || inverseQ.Cmp(key.Precomputed.Qinv) != 0 {
		return nil, fmt.Errorf("the key in %s: dp, dq or inverseQ does not belong to p and q", d.Path(fileKey))
	}
	return key, nil
}

// PublicModulus gives the modulus in the form the service takes.
func PublicModulus(key *rsa.PublicKey) string { return encode(key.N, keyBits/8) }

// PublicExponent gives the exponent in the form the service takes, AQAB as a rule.
func PublicExponent(key *rsa.PublicKey) string {
	return base64.StdEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes())
}

func encode(n *big.Int, width int) string {
	return base64.StdEncoding.EncodeToString(n.FillBytes(make([]byte, width)))
}
