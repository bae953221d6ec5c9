# k-nearest-neighbors classification of irises. Prints its metric in a sentence.
#
# Usage: awk -v k=5 -v power=2 -f knn.awk iris.csv
BEGIN { FS = "," }
NR == 1 { next }                                  # header
{ species[NR] = $5; for (i = 1; i <= 4; i++) measure[NR, i] = $i }

END {
    for (flower = 2; flower <= NR; flower += 3) { # every third flower is for validation
        asked++
        if (guess(flower) == species[flower]) right++
    }
    printf "%.2f %% of %d unseen flowers are right\n", 100 * right / asked, asked
}

# Returns the most frequent species of the k nearest flowers; for a tie, the nearest one's.
function guess(flower,    other, place, nearest, distance, votes, best) {
    for (place = 1; place <= k; place++) distance[place] = 1e9
    for (other = 2; other <= NR; other++) {
        if ((other - 2) % 3 == 0) continue
        insert(distance, nearest, apart(flower, other), species[other])
    }
    for (place = k; place >= 1; place--) votes[nearest[place]]++
    for (place = 1; place <= k; place++) if (votes[nearest[place]] > votes[best]) best = nearest[place]
    return best
}

# Keeps the k smallest distances in order, and their flowers.
function insert(distance, nearest, d, name,    place) {
    if (d >= distance[k]) return
    for (place = k; place > 1 && distance[place - 1] > d; place--) {
        distance[place] = distance[place - 1]
        nearest[place] = nearest[place - 1]
    }
    distance[place] = d
    nearest[place] = name
}

# Minkowski distance: power 1 is Manhattan, power 2 is Euclidean (squared).
function apart(one, other,    i, d, sum) {
    for (i = 1; i <= 4; i++) {
        d = measure[one, i] - measure[other, i]
        sum += (d < 0 ? -d : d) ^ power
    }
    return sum
}
