package mesh

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCredentialsNeedNames(t *testing.T) {
	for _, names := range [][2]string{{"", "a"}, {"c", ""}} {
		_, err := newCredentials(names[0], names[1], nil)
		require.Error(t, err)
	}
	_, err := newCredentials("c", "a", [][]byte{rpcKey(1), make([]byte, 16)})
	require.ErrorContains(t, err, "cluster key 2: it has 16 bytes")
}

// TestAuthorityIsTheSameEverywhere holds what replicas of two versions have to agree on.
func TestAuthorityIsTheSameEverywhere(t *testing.T) {
	_, a, err := authority(rpcKey(1), "c")
	require.NoError(t, err)
	_, b, err := authority(rpcKey(1), "c")
	require.NoError(t, err)
	require.Equal(t, a.Raw, b.Raw)
	require.Equal(t, "57d305612f402f72c138c3617614f97c96fb57fe", hex.EncodeToString(a.SubjectKeyId))
	for _, other := range []struct {
		key     []byte
		cluster string
	}{{rpcKey(2), "c"}, {rpcKey(1), "d"}} {
		_, o, err := authority(other.key, other.cluster)
		require.NoError(t, err)
		require.NotEqual(t, a.PublicKey, o.PublicKey)
	}
}
