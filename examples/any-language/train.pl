#!/usr/bin/perl
# Logistic regression on Fisher's irises by gradient descent. A trial can run any program that takes parameters and
# prints its metric.
#
# Usage: TUNING_PARAM_MOMENTUM=0.9 TUNING_PARAM_L2=0.001 perl train.pl iris.csv LEARNING_RATE
use strict;
use warnings FATAL => "all";
use List::Util qw(max sum0);

use constant { EPOCHS => 5000, REPORT_EVERY => 100 };

my ($file, $learning_rate) = @ARGV;
die "usage: perl train.pl iris.csv LEARNING_RATE\n" unless defined $learning_rate;
my $momentum = $ENV{TUNING_PARAM_MOMENTUM} // 0.9;
my $l2       = $ENV{TUNING_PARAM_L2}       // 1e-4;

$| = 1;                               # print each line immediately, so that the trial can be pruned
my $stopped = 0;
$SIG{TERM} = sub { $stopped = 1 };    # sent when the trial is pruned

my ($flowers, $species) = read_flowers($file);
my @valid = @{$flowers}[grep { $_ % 3 == 0 } 0 .. $#$flowers];
my @train = @{$flowers}[grep { $_ % 3 != 0 } 0 .. $#$flowers];
standardize(\@train, \@valid);

my @weights  = map { [(0) x 5] } 1 .. $species;
my @velocity = map { [(0) x 5] } 1 .. $species;
for my $epoch (1 .. EPOCHS) {
    descend();
    printf "epoch=%d loss=%.6f\n", $epoch, loss() if $epoch % REPORT_EVERY == 0;
    if ($stopped) {
        print "stopped after epoch $epoch: this trial does worse than the median of the others\n";
        exit 0;
    }
}

# Returns the flowers as { x => [1, four measurements], class => number of the species }, and the number of species.
sub read_flowers {
    my ($path) = @_;
    open my $lines, '<', $path or die "$path: $!\n";
    my (%number, @read);
    <$lines>;                         # header
    while (my $line = <$lines>) {
        chomp $line;
        my @measures = split /,/, $line;
        my $name = pop @measures;
        $number{$name} = keys %number unless exists $number{$name};
        push @read, { x => [1, @measures], class => $number{$name} };
    }
    return (\@read, scalar keys %number);
}

# Standardizes each measurement to mean 0 and deviation 1 in the first group of flowers.
sub standardize {
    my @groups = @_;
    for my $i (1 .. 4) {
        my @values = map { $_->{x}[$i] } @{$groups[0]};
        my $mean = sum0(@values) / @values;
        my $deviation = sqrt(sum0(map { ($_ - $mean)**2 } @values) / @values);
        $_->{x}[$i] = ($_->{x}[$i] - $mean) / $deviation for map { @$_ } @groups;
    }
}

# Returns the probability of each species (softmax).
sub probabilities {
    my ($x) = @_;
    my @scores;
    for my $w (@weights) {
        push @scores, sum0(map { $w->[$_] * $x->[$_] } 0 .. 4);
    }
    my $highest = max(@scores);
    my @powers = map { exp($_ - $highest) } @scores;
    my $total = sum0(@powers);
    return map { $_ / $total } @powers;
}

# Takes one step of gradient descent on the mean cross-entropy, with momentum and weight decay.
sub descend {
    my @gradient = map { [(0) x 5] } 1 .. $species;
    for my $flower (@train) {
        my @p = probabilities($flower->{x});
        for my $class (0 .. $species - 1) {
            my $error = $p[$class] - ($class == $flower->{class} ? 1 : 0);
            $gradient[$class][$_] += $error * $flower->{x}[$_] / @train for 0 .. 4;
        }
    }
    for my $class (0 .. $species - 1) {
        for my $i (0 .. 4) {
            my $slope = $gradient[$class][$i] + $l2 * $weights[$class][$i];
            $velocity[$class][$i] = $momentum * $velocity[$class][$i] - $learning_rate * $slope;
            $weights[$class][$i] += $velocity[$class][$i];
        }
    }
}

# Returns the mean cross-entropy of the validation flowers.
sub loss {
    my @losses = map { my @p = probabilities($_->{x}); -log(max($p[$_->{class}], 1e-300)) } @valid;
    return sum0(@losses) / @losses;
}
