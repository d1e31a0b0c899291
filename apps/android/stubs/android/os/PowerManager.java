package android.os;

public final class PowerManager {
    public interface OnThermalStatusChangedListener {
        void onThermalStatusChanged(int status);
    }
    public void addThermalStatusListener(OnThermalStatusChangedListener listener) { throw new RuntimeException(); }
    public void removeThermalStatusListener(OnThermalStatusChangedListener listener) { throw new RuntimeException(); }
}
